use egui::{Align, Layout, Ui, UiBuilder, vec2};

/// A line of a long list, of a height known beforehand: out of sight it takes room and no time, and nothing
/// of `contents` is there.
pub fn strip<R>(ui: &mut Ui, height: f32, contents: impl FnOnce(&mut Ui) -> R) -> Option<R> {
    let (_, rect) = ui.allocate_space(vec2(ui.available_width(), height));
    if !ui.is_rect_visible(rect) {
        return None;
    }
    let layout = Layout::left_to_right(Align::Center);
    Some(contents(&mut ui.new_child(UiBuilder::new().max_rect(rect).layout(layout))))
}
