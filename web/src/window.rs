use std::{cell::RefCell, rc::Rc};

use eframe::egui;
use lathe_ui::{Lathe, Route};
use wasm_bindgen::{JsCast as _, prelude::*};

use crate::{Shared, js_error};

/// The window, and what of it the browser shows: the title, and the place as the address's part after `#/`.
pub struct Window {
    lathe: Lathe,
    page: web_sys::Window,
    title: String,
    address: String,
    /// Where a person went by the address bar or the browser's buttons.
    gone_to: Shared<Option<Route>>,
    _on_hash_change: Closure<dyn FnMut()>,
}

impl Window {
    pub fn new(mut lathe: Lathe, ctx: egui::Context) -> Result<Self, String> {
        let page = web_sys::window().ok_or("There is no window")?;
        let gone_to: Shared<Option<Route>> = Rc::new(RefCell::new(None));
        let (heard, location) = (gone_to.clone(), page.location());
        let on_hash_change = Closure::<dyn FnMut()>::new(move || {
            *heard.borrow_mut() = route_of(&location);
            ctx.request_repaint();
        });
        page.add_event_listener_with_callback("hashchange", on_hash_change.as_ref().unchecked_ref())
            .map_err(js_error("Cannot listen to the page"))?;
        if let Some(route) = route_of(&page.location()) {
            lathe.go(route);
        }
        let (title, address) = (String::new(), lathe.route().address());
        Ok(Self { lathe, page, title, address, gone_to, _on_hash_change: on_hash_change })
    }

    fn tell_browser(&mut self) {
        let address = self.lathe.route().address();
        if address != self.address {
            // A browser that forbids it only shows an old address.
            drop(self.page.location().set_hash(&format!("/{}", js_sys::encode_uri(&address))));
            self.address = address;
        }
        let title = self.lathe.title();
        if title != self.title
            && let Some(document) = self.page.document()
        {
            document.set_title(&title);
            self.title = title;
        }
    }
}

impl eframe::App for Window {
    fn logic(&mut self, ctx: &egui::Context, _frame: &mut eframe::Frame) {
        let gone_to = self.gone_to.borrow_mut().take();
        if let Some(route) = gone_to.filter(|route| route != self.lathe.route()) {
            self.address = route.address();
            self.lathe.go(route);
        }
        self.lathe.logic(ctx);
    }

    fn ui(&mut self, ui: &mut egui::Ui, _frame: &mut eframe::Frame) {
        self.lathe.ui(ui);
        self.tell_browser();
    }

    fn clear_color(&self, visuals: &egui::Visuals) -> [f32; 4] {
        visuals.panel_fill.to_normalized_gamma_f32()
    }
}

fn route_of(location: &web_sys::Location) -> Option<Route> {
    let hash = location.hash().ok()?;
    let address = js_sys::decode_uri(hash.strip_prefix("#/")?).ok()?;
    Route::from_address(&String::from(address))
}
