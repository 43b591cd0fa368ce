//! The pieces every screen is made of. `cargo run --release -p lathe-ui --example gallery` shows them all.

mod button;
mod card;
pub mod chart;
mod dialog;
mod field;
mod histogram;
mod markdown;
mod message;
mod meter;
mod run_badge;
mod stat;
mod stepper;
mod strip;
mod tall_list;
mod tokens;
mod tool_button;

pub use button::{Button, icon_button, link};
pub use card::{card, clickable_card, columns, page, page_with, section};
pub use dialog::{Answer, Confirm, dialog};
pub use field::{choice, field, labelled, search, segmented, switch, wide_search};
pub use histogram::histogram;
pub use markdown::Markdown;
pub use message::{
    USE_CPU, badge, choices, dot, empty_state, error_box, notice, offer, progress_line, spinner_line,
};
pub use meter::{Part, meter, stacked_bar};
pub use run_badge::{run_badge, status_name, status_tone};
pub use stat::{key_value, stat};
pub use stepper::{StepView, stepper};
pub use strip::strip;
pub use tall_list::TallList;
pub use tokens::{TokenText, token_legend};
pub use tool_button::{TOOL_SIDE, tool_button};
