use std::{collections::BTreeMap, path::Path};

use lathe_protocol::{Message, Role, ToolCall};
use serde_json::json;

use super::*;

const TRAINING: &str = include_str!("../../../chat_templates/chatml_training.jinja");
const PLAIN: &str = include_str!("../../../chat_templates/chatml.jinja");

fn compile(source: &str) -> ChatTemplate {
    let specials = BTreeMap::from([("bos_token".into(), "<s>".into()), ("eos_token".into(), "</s>".into())]);
    ChatTemplate::new(source, "test", &specials).unwrap()
}

/// A template of `tests/golden/data/templates.json`.
fn golden(name: &str) -> ChatTemplate {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/data/templates.json");
    let goldens: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    compile(goldens["templates"][name].as_str().unwrap())
}

/// `u:Hi`, `a:Hello`, `s:Be kind`, `t:result`.
fn chat(turns: &[&str]) -> Chat {
    let message = |turn: &&str| {
        let role = match turn.split_at(2).0 {
            "s:" => Role::System,
            "u:" => Role::User,
            "a:" => Role::Assistant,
            "t:" => Role::Tool,
            other => panic!("{other}"),
        };
        Message::new(role, &turn[2..])
    };
    Chat::new(turns.iter().map(message).collect())
}

fn spans(template: &ChatTemplate, chat: &Chat) -> Vec<String> {
    let Rendered { text, assistant_spans, .. } = render(template, chat, &RenderOptions::default()).unwrap();
    assistant_spans.into_iter().map(|span| text[span].to_string()).collect()
}

#[test]
fn spans_hold_the_words_and_the_end_token() {
    let chat = chat(&["s:Be kind", "u:Hi", "a:Hello", "u:Bye", "a:\n Bye \n"]);
    let expected = ["Hello<|im_end|>", "\n Bye \n<|im_end|>"];
    assert_eq!(spans(&compile(TRAINING), &chat), expected);
    assert_eq!(spans(&compile(PLAIN), &chat), expected);
    assert_eq!(spans(&golden("smollm2"), &chat), expected);
    let rendered = render(&compile(TRAINING), &chat, &RenderOptions::default()).unwrap();
    assert_eq!(rendered, render(&compile(PLAIN), &chat, &RenderOptions::default()).unwrap());
}

#[test]
fn context_turns_are_in_the_text_but_not_learned() {
    let mut chat = chat(&["u:Hi", "a:Hello", "u:Bye", "a:Bye"]);
    chat.unlearned = vec![1];
    for template in [compile(TRAINING), compile(PLAIN)] {
        assert_eq!(spans(&template, &chat), ["Bye<|im_end|>"]);
    }
}

#[test]
fn generation_tags_keep_their_whitespace_control() {
    let check = |source: &str, expected: &str| {
        let rendered = render(&compile(source), &chat(&["a:x"]), &RenderOptions::default()).unwrap();
        assert_eq!((rendered.text.as_str(), rendered.assistant_spans.len()), (expected, 1), "{source}");
    };
    check("a {%- generation -%} {{ messages[0].content }} {%- endgeneration +%} b", "ax b");
    check("a {% generation %}{{ messages[0].content }}{% endgeneration %}\nb", "a xb");
    check("a\n  {%generation%}\n{{ messages[0].content }}{%- endgeneration -%}\nb", "a\nxb");
}

#[test]
fn qwen3_spans_hold_what_it_says_and_not_the_thinking_it_drops() {
    let template = golden("qwen3");
    let mut thought = chat(&["s:Be kind", "u:Why?", "a:So.", "u:Really?", "a:Yes."]);
    thought.messages[2].thinking = Some("Let me see.".into());
    thought.messages[4].thinking = Some("I am sure.".into());
    assert_eq!(
        spans(&template, &thought),
        ["So.<|im_end|>", "<think>\nI am sure.\n</think>\n\nYes.<|im_end|>"]
    );
    let tagged = chat(&["u:Why?", "a:<think>\nHm.\n</think>\n\nSo.", "u:Really?", "a:Yes."]);
    assert_eq!(spans(&template, &tagged), ["So.<|im_end|>", "<think>\n\n</think>\n\nYes.<|im_end|>"]);
}

#[test]
fn gptoss_spans_hold_its_messages_and_the_end_that_stops_it() {
    let mut thought = chat(&["s:Be kind", "u:Why?", "a:So.", "u:Really?", "a:Yes."]);
    thought.messages[2].thinking = Some("Let me see.".into());
    thought.messages[4].thinking = Some("I am sure.".into());
    let own = golden("gptoss");
    let last = "<|channel|>analysis<|message|>I am sure.<|end|>\
                <|start|>assistant<|channel|>final<|message|>Yes.<|return|>";
    // An earlier answer ends in <|end|>, which the model must not learn to write there.
    assert_eq!(spans(&own, &thought), ["<|channel|>final<|message|>So.", last]);
    // A template that is not quite the official one goes by difference, which knows of no such exception.
    let other = compile(&own.source.replace("You are ChatGPT", "You are Lathe"));
    assert_eq!(spans(&other, &thought), ["<|channel|>final<|message|>So.<|end|>", last]);
}

#[test]
fn the_twins_spans_are_the_difference_of_renders() {
    let mut thought = chat(&["s:Be kind", "u:Why?", "a:So.", "u:Really?", "a:Yes."]);
    thought.messages[4].thinking = Some("I am sure.".into());
    let template = golden("qwen3");
    assert!(template.has_twin() && !template.has_generation_tags());
    let text = template.prompt(&thought, &RenderOptions::default()).unwrap();
    let spans = spans::by_difference(&template, &thought, &RenderOptions::default(), &text).unwrap();
    let rendered = render(&template, &thought, &RenderOptions::default()).unwrap();
    assert_eq!(spans.into_iter().map(|(_, bytes)| bytes).collect::<Vec<_>>(), rendered.assistant_spans);
}

#[test]
fn tool_calls_are_learned_and_tool_results_are_not() {
    let mut chat = chat(&["u:Time?", "a:", "t:12:30", "a:Half past twelve."]);
    let function = json!({"name": "clock", "arguments": {}});
    chat.messages[1].tool_calls = vec![ToolCall { id: None, kind: None, function }];
    chat.tools = Some(json!([{"type": "function", "function": {"name": "clock"}}]));
    let [call, answer] = <[String; 2]>::try_from(spans(&golden("qwen3"), &chat)).unwrap();
    assert!(
        call.ends_with("<tool_call>\n{\"name\": \"clock\", \"arguments\": {}}\n</tool_call><|im_end|>"),
        "{call:?}"
    );
    assert!(answer.ends_with("Half past twelve.<|im_end|>") && !answer.contains("12:30"), "{answer:?}");
}

#[test]
fn headers_are_found_without_a_generation_prompt_and_inside_an_opened_thought() {
    // Mistral's kind: no header at all.
    let bare = "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]\
                {% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}";
    let chat = chat(&["u:Hi", "a:Hello", "u:Bye", "a:Bye"]);
    assert_eq!(spans(&compile(bare), &chat), [" Hello</s>", " Bye</s>"]);
    // DeepSeek-R1's kind: the prompt opens a thought that the conversation does not keep.
    let opened = "{% for m in messages %}<|{{ m.role }}|>{{ m.content.split('</think>')[-1] }}{{ eos_token }}\
                  {% endfor %}{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}";
    assert_eq!(spans(&compile(opened), &chat), ["Hello</s>", "Bye</s>"]);
}

#[test]
fn a_template_that_hides_whose_words_are_whose_is_an_error() {
    let source = "{% for m in messages | reverse %}{{ m.content }}{% endfor %}";
    let error = render(&compile(source), &chat(&["u:Hi", "a:Hello", "u:Bye"]), &RenderOptions::default())
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "Cannot tell which part of the text is the assistant's turn messages[1]: test"
    );
}

#[test]
fn templates_refuse_in_their_own_words() {
    let source = "{{ raise_exception('No ' + messages[0].role + ' here') }}";
    let error = compile(source).prompt(&chat(&["s:Be kind"]), &RenderOptions::default()).unwrap_err();
    assert_eq!(error.to_string(), "The chat template fails: No system here (line 1 of the template): test");
    for broken in ["{% if %}", "{%}", "{%"] {
        let error = ChatTemplate::new(broken, "test", &BTreeMap::new()).err().unwrap();
        assert!(error.to_string().starts_with("The chat template does not parse: "), "{error}");
    }
}

#[test]
fn templates_without_end_or_measure_are_stopped() {
    for (source, why) in [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "fuel"),
        ("{% for i in range(9999) %}{{ 'x' * 99999 }}{% endfor %}", "64 MiB"),
        ("{% set ns = namespace() %}{% set ns.itself = ns %}{{ ns | tojson }}", "nested too deeply"),
    ] {
        let error = compile(source).prompt(&chat(&["u:Hi"]), &RenderOptions::default()).unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
    }
    // The library's own panic, with a list that is empty.
    let source = "{% for message in messages[9:][::-1] %}{% endfor %}";
    let error = compile(source).prompt(&chat(&["u:Hi"]), &RenderOptions::default()).unwrap_err();
    assert!(error.to_string().starts_with("The chat template fails: "), "{error}");
    let wide = compile("{{ [1] | tojson(indent=999999999999) }}");
    assert!(wide.prompt(&chat(&["u:Hi"]), &RenderOptions::default()).unwrap().len() < 100);
}

#[test]
fn messages_cannot_forge_a_span() {
    let error = render(&compile(TRAINING), &chat(&["u:\u{10f3a0}Hi", "a:Hello"]), &RenderOptions::default());
    assert!(error.unwrap_err().to_string().starts_with("messages[0] holds the private-use character"));
}

#[test]
fn the_date_and_the_switches_reach_the_template() {
    let source = "{{ strftime_now('%d %b %Y') }}{% if enable_thinking is defined %} {{ enable_thinking }}{% endif %} \
                  {{ reasoning_effort }} {{ tools is none }}";
    let template = compile(source);
    let mut chat = chat(&["u:Hi"]);
    chat.reasoning_effort = Some("low".into());
    let options = RenderOptions::default();
    assert_eq!(template.prompt(&chat, &options).unwrap(), "26 Jul 2024 low True");
    let options = RenderOptions {
        enable_thinking: Some(false),
        reasoning_effort: Some("high".into()),
        now: Some(jiff::civil::date(2025, 1, 2).into()),
        ..options
    };
    assert_eq!(template.prompt(&chat, &options).unwrap(), "02 Jan 2025 False high True");
}

#[test]
fn every_turn_is_told_from_the_next() {
    let check = |template: &ChatTemplate, chat: &Chat, expected: &[(Role, &str)]| {
        let text = template.prompt(chat, &RenderOptions::default()).unwrap();
        let turns = turns(template, chat, &RenderOptions::default(), &text);
        let found: Vec<_> = turns.iter().map(|turn| (turn.role, &text[turn.bytes.clone()])).collect();
        assert_eq!(found, expected);
    };
    check(
        &golden("smollm2"),
        &chat(&["u:Hi", "a:Hello"]),
        &[
            (
                Role::System,
                "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>",
            ),
            (Role::User, "<|im_start|>user\nHi<|im_end|>"),
            (Role::Assistant, "<|im_start|>assistant\nHello<|im_end|>"),
        ],
    );
    let mut thought = chat(&["u:Why?", "a:So.", "u:Really?", "a:Yes."]);
    thought.messages[1].thinking = Some("Let me see.".into());
    check(
        &golden("qwen3"),
        &thought,
        &[
            (Role::User, "<|im_start|>user\nWhy?<|im_end|>"),
            (Role::Assistant, "<|im_start|>assistant\nSo.<|im_end|>"),
            (Role::User, "<|im_start|>user\nReally?<|im_end|>"),
            (Role::Assistant, "<|im_start|>assistant\n<think>\n\n</think>\n\nYes.<|im_end|>"),
        ],
    );
}
