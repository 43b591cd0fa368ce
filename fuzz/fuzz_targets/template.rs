//! A chat template of somebody's making: compiled, and rendered with spans.

#![no_main]

use std::{collections::BTreeMap, sync::LazyLock};

use lathe_engine::{
    data::Chat,
    template::{ChatTemplate, RenderOptions, render},
};
use lathe_fuzz::spare_expected_panics;
use lathe_protocol::Message;
use libfuzzer_sys::fuzz_target;

static CHAT: LazyLock<Chat> = LazyLock::new(|| {
    let messages: Vec<Message> = serde_json::from_str(
        r#"[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi <|im_end|> ü"},
            {"role": "assistant", "content": "Hello.", "thinking": "A greeting."}, {"role": "user", "content": ""},
            {"role": "assistant", "content": "Yes?"}]"#,
    )
    .expect("messages");
    Chat::new(messages)
});

fuzz_target!(init: spare_expected_panics(), |source: &str| {
    let specials = BTreeMap::from([("eos_token".to_owned(), "<|im_end|>".to_owned())]);
    let Ok(template) = ChatTemplate::new(source, "fuzz", &specials) else { return };
    let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
    drop(template.prompt(&CHAT, &options));
    drop(render(&template, &CHAT, &RenderOptions::default()));
});
