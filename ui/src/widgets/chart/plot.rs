use egui::{
    Color32, CursorIcon, FontId, Id, PopupAnchor, Pos2, Rangef, Response, Role, Sense, Stroke, Tooltip, Ui,
    WidgetInfo,
};
use egui_plot::{AxisHints, FilledArea, Line, Plot, PlotTransform, PlotUi, Points, Polygon, VLine};

use super::{Chart, ChartLink, Look, Series, decimate::Window, swatch, ticks, x_text};
use crate::{
    format,
    theme::{self, Colors, colors, size, space},
};

/// Room for the numbers of the y axis, the same in every chart, so that linked ones stand under each other.
const AXIS_WIDTH: f32 = 44.0;
/// For the half of the last number that stands beyond the plot.
const END_ROOM: f32 = 10.0;
const AXIS_HEIGHT: f32 = 18.0;
/// How strongly a band is filled: it covers more than its line would.
const BAND: f32 = 0.7;
/// Narrower selections are clicks.
const MIN_SELECTION: f32 = 6.0;

pub(super) fn color(colors: &Colors, series: &Series) -> Color32 {
    let color = colors.series[series.color % 8];
    if series.look == Look::Faint { color.gamma_multiply(0.35) } else { color }
}

/// Pixels that share the (at most four) points of one column: finer shows no more, and a renderer without a GPU pays
/// for each.
fn column_width(look: Look) -> f32 {
    match look {
        Look::Faint | Look::Line => 4.0,
        Look::Marked => 1.0,
    }
}

impl Chart {
    pub(super) fn plot(&mut self, ui: &mut Ui, link: &mut ChartLink) {
        let (from, to) = link.range();
        let width = (ui.available_width() - AXIS_WIDTH - END_ROOM).max(1.0);
        for series in &mut self.series {
            let columns = (width * ui.pixels_per_point() / column_width(series.look)) as usize;
            let window = Window { from, to, columns: columns.max(1), log: self.log };
            series.drawn.update(&series.xs, &series.ys, window);
        }
        // So that marks at either end are whole.
        let pad = 4.0 * (to - from) / f64::from(width);
        let (low, high) = self.y_range();
        let colors = colors(ui);
        let (log, height) = (self.log, self.height);
        let rows = f64::from(height) / 36.0;
        let axis = |hints: AxisHints<'static>| {
            hints
                .tick_label_font(FontId::proportional(size::SMALL))
                .tick_label_color(colors.text_faint)
                .label_spacing(Rangef::new(1.0, 2.0))
        };
        let (this, view) = (&*self, &*link);
        let shown = Plot::new(self.title)
            .height(height)
            .width((ui.available_width() - END_ROOM).max(1.0))
            .allow_zoom(false)
            .allow_drag(false)
            .allow_scroll(false)
            .allow_boxed_zoom(false)
            .allow_axis_zoom_drag(false)
            .allow_double_click_reset(false)
            .show_background(false)
            .show_x(false)
            .show_y(false)
            .show_grid([false, true])
            .grid_spacing(Rangef::new(0.5, 1.0))
            .grid_color(colors.border)
            .sense(Sense::CLICK | Sense::DRAG)
            .x_grid_spacer(move |input| {
                ticks::linear(input.bounds.0, input.bounds.1, f64::from(width) / 110.0)
            })
            .y_grid_spacer(move |input| {
                if log {
                    ticks::logarithmic(input.bounds, rows)
                } else {
                    ticks::linear(input.bounds.0, input.bounds.1, rows)
                }
            })
            .custom_x_axes(vec![axis(AxisHints::new_x().formatter(ticks::label)).min_thickness(AXIS_HEIGHT)])
            .custom_y_axes(vec![
                axis(AxisHints::new_y().formatter(move |mark, range| {
                    if log { ticks::log_label(mark) } else { ticks::label(mark, range) }
                }))
                .min_thickness(AXIS_WIDTH),
            ])
            .show(ui, |plot| {
                plot.set_plot_bounds_x(from - pad..=to + pad);
                plot.set_plot_bounds_y(low..=high);
                this.draw(plot, view, colors, (low, high));
            });
        let response = shown.response.on_hover_cursor(CursorIcon::Crosshair);
        response.widget_info(|| {
            let lead = self.lead.and_then(|lead| self.series[lead].last());
            let newest = lead.map_or(String::new(), |(_, y)| format!(": {}", (self.value)(y)));
            WidgetInfo::labeled(Role::Figure, true, format!("{} chart{newest}", self.title))
        });
        interact(ui, link, &response, &shown.transform);
        if response.hovered() {
            self.tooltip(ui, link, response.id);
        }
    }

    /// Of everything shown, with room above and below.
    fn y_range(&self) -> (f64, f64) {
        let shown = self.series.iter().filter(|series| series.shown);
        let extremes = shown.filter_map(|series| series.drawn.extremes());
        let (low, high) =
            extremes.reduce(|(low, high), next| (low.min(next.0), high.max(next.1))).unwrap_or((0.0, 1.0));
        let span = high - low;
        // A flat line stands in the middle.
        let room = if span > 1e-9 * high.abs() { 0.08 * span } else { (0.1 * high.abs()).max(1e-9) };
        let bottom =
            if !self.log && low >= 0.0 && low - room < 0.0 { -0.02 * (high + room) } else { low - room };
        (bottom, high + room)
    }

    fn draw<'a>(&'a self, plot: &mut PlotUi<'a>, link: &ChartLink, colors: &Colors, (low, high): (f64, f64)) {
        if let Some((start, end)) = link.selection {
            let corners = [[start, low], [end, low], [end, high], [start, high]];
            let fill = colors.accent.gamma_multiply(0.15);
            let band = Polygon::new("", corners.to_vec()).fill_color(fill).stroke(Stroke::NONE);
            plot.polygon(band.allow_hover(false));
        }
        let hovered = self.snap(link);
        if let Some(x) = hovered {
            plot.vline(VLine::new("", x).color(colors.border_strong).width(1.0).allow_hover(false));
        }
        for series in self.series.iter().filter(|series| series.shown) {
            let color = color(colors, series);
            let width = if series.look == Look::Line { 1.75 } else { 1.25 };
            for line in series.drawn.lines() {
                if series.look == Look::Faint
                    && let Some(band) = series.drawn.band(line)
                {
                    let area = FilledArea::new("", &band.xs, &band.lows, &band.highs);
                    plot.add(area.fill_color(color.gamma_multiply(BAND)).allow_hover(false));
                    continue;
                }
                plot.line(Line::new("", line).color(color).width(width).allow_hover(false));
                if series.look == Look::Marked || line.len() == 1 {
                    plot.points(Points::new("", line).color(color).radius(3.0).allow_hover(false));
                }
            }
            // The mark of a faint line would say what the line itself only hints at.
            let marked = hovered.filter(|_| series.look != Look::Faint).and_then(|x| series.nearest(x));
            if let Some((x, y)) = marked {
                let y = if self.log { y.log10() } else { y };
                plot.points(Points::new("", [x, y]).color(color).radius(4.5).allow_hover(false));
            }
        }
    }

    /// What every series shown says where the pointer is.
    fn tooltip(&self, ui: &Ui, link: &ChartLink, id: Id) {
        let Some(x) = self.snap(link) else { return };
        let tooltip = Tooltip::always_open(ui.ctx().clone(), ui.layer_id(), id, PopupAnchor::Pointer);
        tooltip.gap(space::L).show(|ui| {
            ui.label(theme::small(ui, format!("{} {}", link.x_name, format::count(x.max(0.0) as u64))));
            ui.spacing_mut().interact_size.y = size::HEADING;
            let grid = egui::Grid::new("values").num_columns(3).min_col_width(0.0);
            grid.spacing([space::S, 2.0]).show(ui, |ui| {
                for series in self.series.iter().filter(|series| series.shown) {
                    let Some((at, y)) = series.nearest(x) else { continue };
                    swatch(ui, series);
                    ui.label(theme::strong((self.value)(y)));
                    let elsewhere = if at.total_cmp(&x).is_eq() {
                        String::new()
                    } else {
                        format!(", {}", x_text(link, at))
                    };
                    ui.label(theme::weak(ui, format!("{}{elsewhere}", series.name)));
                    ui.end_row();
                }
            });
        });
    }
}

/// Zooms into what is dragged over, or by Ctrl and the wheel; a double click shows everything again. Without Ctrl the
/// wheel is the page's.
fn interact(ui: &Ui, link: &mut ChartLink, response: &Response, transform: &PlotTransform) {
    let x_at = |place: Pos2| transform.value_from_position(place).x;
    if response.double_clicked() {
        link.reset_zoom();
    }
    if let Some(place) = response.hover_pos() {
        link.hovered_next = Some(x_at(place));
        let factor = f64::from(ui.input(egui::InputState::zoom_delta));
        let (from, to) = link.range();
        if factor.total_cmp(&1.0).is_ne() && to - from > factor {
            let center = x_at(place);
            let from = (center - (center - from) / factor).max(link.extent.0);
            let to = (center + (to - center) / factor).min(link.extent.1);
            link.zoom = ((from, to) != link.extent).then_some((from, to));
        }
    }
    if response.drag_started() {
        let start = ui.input(|input| input.pointer.press_origin()).map(x_at);
        link.selection = start.map(|start| (start, start));
    }
    if let (Some((start, _)), Some(place)) = (link.selection, response.interact_pointer_pos()) {
        link.selection = Some((start, x_at(place)));
    }
    if response.drag_stopped()
        && let Some((start, end)) = link.selection.take()
        && (end - start).abs() * transform.dpos_dvalue_x() >= f64::from(MIN_SELECTION)
    {
        let within = |x: f64| x.clamp(link.extent.0, link.extent.1);
        link.zoom = Some((within(start.min(end)), within(start.max(end))));
    }
}
