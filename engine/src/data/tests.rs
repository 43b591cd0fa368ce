use std::{io::Write as _, path::PathBuf};

use lathe_protocol::{DatasetShape, Role};
use serde_json::json;

use super::*;
use crate::Error;

/// A data file of this name and content; the folder lives as long as the first of the two.
fn file(name: &str, content: impl AsRef<[u8]>) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, content).unwrap();
    (folder, path)
}

/// Reads and parses every row.
fn load(name: &str, content: impl AsRef<[u8]>) -> crate::Result<(DatasetShape, Vec<Conversation>)> {
    let (_folder, path) = file(name, content);
    load_path(&path)
}

fn load_path(path: &Path) -> crate::Result<(DatasetShape, Vec<Conversation>)> {
    let dataset = read_examples(path, &BTreeMap::new())?;
    let parse = |example| parse_conversation(example, dataset.shape, &dataset.path);
    Ok((dataset.shape, dataset.examples.iter().map(parse).collect::<crate::Result<_>>()?))
}

/// The error's message without the path at its end.
fn complaint(result: crate::Result<(DatasetShape, Vec<Conversation>)>) -> String {
    let message = result.unwrap_err().to_string();
    let (what, _path) = message.rsplit_once(": ").unwrap();
    what.to_string()
}

fn chat(conversation: &Conversation) -> &Chat {
    match conversation {
        Conversation::Chat(chat) => chat,
        Conversation::Raw(raw) => panic!("{raw:?}"),
    }
}

fn turns(conversation: &Conversation) -> Vec<(Role, &str)> {
    chat(conversation).messages.iter().map(|message| (message.role, message.content.as_str())).collect()
}

const ROW: &str =
    r#"{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}"#;

#[test]
fn every_shape_is_detected_and_read() {
    let check = |row: serde_json::Value, shape: DatasetShape, expected: &[(Role, &str)]| {
        let (found, rows) = load("rows.jsonl", row.to_string()).unwrap();
        assert_eq!((found, turns(&rows[0]).as_slice()), (shape, expected));
    };
    let hi_hello = [(Role::User, "Hi"), (Role::Assistant, "Hello")];
    check(serde_json::from_str(ROW).unwrap(), DatasetShape::Messages, &hi_hello);
    check(
        json!({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}], "system": "S"}),
        DatasetShape::ShareGpt,
        &[(Role::System, "S"), (Role::User, "Hi"), (Role::Assistant, "Hello")],
    );
    check(
        json!({"conversations": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}),
        DatasetShape::ShareGpt,
        &hi_hello,
    );
    check(json!({"instruction": "Hi", "input": "", "output": "Hello"}), DatasetShape::Alpaca, &hi_hello);
    check(
        json!({"instruction": "Add", "input": "1, 2", "output": "3"}),
        DatasetShape::Alpaca,
        &[(Role::User, "Add\n\n1, 2"), (Role::Assistant, "3")],
    );
    check(
        json!({"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "Hello"}]}),
        DatasetShape::PromptCompletion,
        &hi_hello,
    );
}

#[test]
fn strings_and_text_files_stay_raw() {
    let raw = |prompt: &str, completion: &str| {
        Conversation::Raw(RawText { prompt: prompt.into(), completion: completion.into(), style: None })
    };
    let (_, rows) = load("a.jsonl", r#"{"prompt": "[1] 2 +", "completion": " 2"}"#).unwrap();
    assert_eq!(rows, [raw("[1] 2 +", " 2")]);
    let (shape, rows) = load("a.md", "# One\n\nTwo\n").unwrap();
    assert_eq!((shape, rows), (DatasetShape::Text, vec![raw("", "# One\n\nTwo\n")]));
}

#[test]
fn only_the_completions_turns_are_learned() {
    let turn = |role: &str| json!({"role": role, "content": "x"});
    let row = json!({
        "prompt": [turn("user"), turn("assistant"), turn("user")],
        "completion": [turn("assistant")],
    });
    let (_, rows) = load("a.jsonl", row.to_string()).unwrap();
    assert_eq!(chat(&rows[0]).unlearned, [0, 1, 2]);
    let row = json!({"messages": [turn("user"), {"role": "assistant", "content": "x", "weight": 0}]});
    let (_, rows) = load("a.jsonl", row.to_string()).unwrap();
    assert_eq!(chat(&rows[0]).unlearned, [1]);
}

#[test]
fn thoughts_tools_effort_and_parts_are_kept() {
    let row = json!({
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Weather"}, {"type": "text", "text": "in Paris?"}]},
            {"role": "assistant", "content": null, "reasoning_content": "A tool.", "tool_calls":
                [{"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{\"city\": \"Paris\"}"}}]},
            {"role": "tool", "content": "rain", "tool_call_id": "1"},
            {"role": "assistant", "content": "It rains.", "thinking": null},
        ],
        "tools": "[{\"type\": \"function\"}]",
        "reasoning_effort": "high",
    });
    let (_, rows) = load("a.jsonl", row.to_string()).unwrap();
    let chat = chat(&rows[0]);
    assert_eq!(chat.messages[0].content, "Weather\nin Paris?");
    assert_eq!(chat.messages[1].thinking.as_deref(), Some("A tool."));
    assert_eq!(chat.messages[1].tool_calls[0].function["arguments"], json!({"city": "Paris"}));
    assert_eq!(chat.messages[2].tool_call_id.as_deref(), Some("1"));
    assert_eq!(chat.tools, Some(json!([{"type": "function"}])));
    assert_eq!(chat.reasoning_effort.as_deref(), Some("high"));
}

#[test]
fn an_unknown_effort_names_its_row() {
    let rows = format!("{ROW}\n{}", ROW.replacen('{', r#"{"reasoning_effort": "max", "#, 1));
    assert_eq!(
        complaint(load("rows.jsonl", rows)),
        r#"Row 1 (line 2), reasoning_effort: unknown effort "max""#
    );
}

#[test]
fn byte_order_marks_carriage_returns_blank_lines_and_gzip_are_fine() {
    let content = format!("\u{feff}{ROW}\r\n\r\n  \n{ROW}");
    let (_folder, path) = file("rows.jsonl", &content);
    let lines: Vec<_> = read_examples(&path, &BTreeMap::new())
        .unwrap()
        .examples
        .iter()
        .map(|row| (row.row, row.line))
        .collect();
    assert_eq!(lines, [(0, 1), (1, 4)]);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(content.as_bytes()).unwrap();
    assert_eq!(load("rows.jsonl.gz", gzip.finish().unwrap()).unwrap().1.len(), 2);
}

#[test]
fn json_arrays_know_their_lines() {
    let (_folder, path) = file("rows.json", format!("[\n{ROW},\n\n  {ROW}\n]\n"));
    let lines: Vec<_> =
        read_examples(&path, &BTreeMap::new()).unwrap().examples.iter().map(|row| row.line).collect();
    assert_eq!(lines, [2, 4]);
    let bad = |content: String| complaint(load("rows.json", content));
    assert_eq!(
        bad(format!("[\n{ROW},\n  {{\"messages\": [,]}}]")),
        "Row 1 (line 3): bad JSON at column 17: expected value"
    );
    assert_eq!(bad(format!("[{ROW}")), "Row 1 (line 1): bad JSON: the array of rows is not closed");
    assert_eq!(
        bad(format!("[{ROW} {ROW}]")),
        "Row 1 (line 1): bad JSON: expected a comma or ] after the row before"
    );
    assert_eq!(bad(format!("[{ROW},")), "Row 1 (line 1): bad JSON: the array of rows is not closed");
    assert_eq!(bad(format!("[{ROW},]")), "Row 1 (line 1): bad JSON at column 95: expected value");
    assert_eq!(bad("[1]".into()), "Row 0 (line 1): a row must be a JSON object, this one is a number");
}

#[test]
fn csv_cells_may_hold_line_breaks_and_messages() {
    let content = "instruction,input,output\n\"Say \"\"hi\"\"\nnow\",,Hi\nBye,,\"Good, bye\"\n";
    let (_folder, path) = file("a.csv", content);
    let dataset = read_examples(&path, &BTreeMap::new()).unwrap();
    let lines: Vec<_> = dataset.examples.iter().map(|row| row.line).collect();
    assert_eq!((dataset.shape, lines), (DatasetShape::Alpaca, vec![2, 4]));
    let (_, rows) = load_path(&path).unwrap();
    assert_eq!(turns(&rows[0]), [(Role::User, "Say \"hi\"\nnow"), (Role::Assistant, "Hi")]);
    let messages =
        r#"[{""role"": ""user"", ""content"": ""Hi""}, {""role"": ""assistant"", ""content"": ""Hello""}]"#;
    let (shape, _) = load("a.csv", format!("messages\n\"{messages}\"\n")).unwrap();
    assert_eq!(shape, DatasetShape::Messages);
    assert_eq!(
        complaint(load("a.csv", "prompt,completion\na,b\na,b,c\n")),
        "Row 1 (line 3): 3 cells, but the header names 2"
    );
    assert_eq!(
        complaint(load("a.csv", b"prompt,completion\na,b\na,caf\xe9\n")),
        "Row 1 (line 3): cell 2 is not UTF-8 at its byte 4"
    );
}

#[test]
fn errors_name_row_line_and_field() {
    let check = |second_row: &str, expected: &str| {
        assert_eq!(complaint(load("a.jsonl", format!("{ROW}\n\n{second_row}\n"))), expected);
    };
    let assistant = |content: &str| {
        format!(r#"{{"messages": [{{"role": "user", "content": "Hi"}}, {{"role": "assistant"{content}}}]}}"#)
    };
    check("{\"messages\": [", "Row 1 (line 3): bad JSON at column 14: EOF while parsing a list");
    check("[]", "Row 1 (line 3): a row must be a JSON object, this one is an array");
    check("{\"messages\": []}", "Row 1 (line 3), messages: no messages");
    check("{\"messages\": {}}", "Row 1 (line 3), messages: expected an array of messages, found an object");
    check("{\"messages\": [1]}", "Row 1 (line 3), messages[0]: expected an object, found a number");
    check(
        "{\"messages\": [{\"role\": \"narrator\"}]}",
        "Row 1 (line 3), messages[0].role: unknown role \"narrator\"",
    );
    check("{\"messages\": [{\"content\": \"Hi\"}]}", "Row 1 (line 3), messages[0].role: missing field");
    check("{\"messages\": [{\"role\": \"user\"}]}", "Row 1 (line 3), messages[0].content: missing field");
    check(
        &assistant(", \"content\": \" \""),
        "Row 1 (line 3), messages[1].content: the assistant's content is empty",
    );
    check(
        &assistant(", \"content\": 7"),
        "Row 1 (line 3), messages[1].content: expected a string, found a number",
    );
    check(
        &assistant(", \"content\": [{\"type\": \"image_url\"}]"),
        "Row 1 (line 3), messages[1].content[0]: a part of type \"image_url\": only text can be trained on",
    );
    check(
        &assistant(", \"content\": null"),
        "Row 1 (line 3), messages[1].content: expected a string, found null",
    );
    check("{\"text\": \"Hi\"}", "Row 1 (line 3): mixed shapes: this row is text, the first row is messages");
    check("{\"message\": []}", "Row 1 (line 3), messages: missing field");
}

#[test]
fn first_rows_of_no_known_shape_are_refused_with_what_they_have() {
    let check = |row: &str, expected: &str| assert_eq!(complaint(load("a.jsonl", row)), expected);
    check(
        "{\"question\": 1, \"answer\": 2}",
        "Row 0 (line 1): no known shape: its fields are question, answer",
    );
    check(
        "{\"prompt\": \"a\", \"response\": \"b\"}",
        "Row 0 (line 1), completion: missing field: the row has prompt, response",
    );
}

/// A mapping from `role=column` pairs.
fn mapping(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(role, column)| (role.to_string(), column.to_string())).collect()
}

#[test]
fn columns_of_other_names_are_taken_for_their_roles_in_every_shape() {
    let check = |name: &str, content: &str, pairs: &[(&str, &str)], shape: DatasetShape| {
        let (_folder, path) = file(name, content);
        let dataset = read_examples(&path, &mapping(pairs)).unwrap();
        assert_eq!(dataset.shape, shape);
        for (role, column) in pairs {
            let view = dataset.columns.iter().find(|view| view.name == *column).unwrap();
            assert_eq!(view.role.as_deref(), Some(*role));
        }
        if shape != DatasetShape::Preference {
            parse_conversation(&dataset.examples[0], shape, &path).unwrap();
        }
    };
    let renamed = ROW.replace("messages", "chat");
    check("a.jsonl", &renamed, &[("messages", "chat")], DatasetShape::Messages);
    check("a.json", &format!("[{renamed}]"), &[("messages", "chat")], DatasetShape::Messages);
    let sharegpt = r#"{"turns": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}"#;
    check("a.jsonl", sharegpt, &[("conversations", "turns")], DatasetShape::ShareGpt);
    let (alpaca, tsv) = ("task,extra,result\nAdd,\"1, 2\",3\n", "task\textra\tresult\nAdd\t1\t3\n");
    let roles = [("instruction", "task"), ("input", "extra"), ("output", "result")];
    check("a.csv", alpaca, &roles, DatasetShape::Alpaca);
    check("a.tsv", tsv, &roles, DatasetShape::Alpaca);
    let roles = [("prompt", "question"), ("completion", "answer")];
    check("a.csv", "question,answer\nWhy?,So\n", &roles, DatasetShape::PromptCompletion);
    let roles = [("chosen", "good"), ("rejected", "bad")];
    check("a.csv", "prompt,good,bad\na,b,c\n", &roles, DatasetShape::Preference);
    check("a.jsonl", r#"{"body": "Once"}"#, &[("text", "body")], DatasetShape::Text);
    check("a.md", "Once", &[("text", "text")], DatasetShape::Text);
}

#[test]
fn a_mapping_decides_the_shape_and_may_swap_columns() {
    let raw = |pairs: &[(&str, &str)], header: &str| {
        let (_folder, path) = file("a.csv", format!("{header}\na,b,c\n"));
        let dataset = read_examples(&path, &mapping(pairs)).unwrap();
        let roles: Vec<_> =
            dataset.columns.iter().map(|view| view.role.clone().unwrap_or_default()).collect();
        (parse_conversation(&dataset.examples[0], dataset.shape, &path).unwrap(), roles.join(" "))
    };
    let expected = |prompt: &str, completion: &str| {
        Conversation::Raw(RawText { prompt: prompt.into(), completion: completion.into(), style: None })
    };
    let swapped = [("prompt", "completion"), ("completion", "prompt")];
    assert_eq!(raw(&swapped, "prompt,completion,id"), (expected("b", "a"), "completion prompt ".into()));
    // The column `prompt` is not what the mapping says the prompt is.
    assert_eq!(
        raw(&[("prompt", "id")], "prompt,completion,id"),
        (expected("c", "b"), " completion prompt".into())
    );
    // Rows that have messages too are read as the mapping says.
    assert_eq!(
        raw(&[("prompt", "q"), ("completion", "a")], "messages,q,a"),
        (expected("b", "c"), " prompt completion".into())
    );
}

#[test]
fn a_mapping_that_does_not_fit_is_refused_with_what_there_is() {
    let check = |pairs: &[(&str, &str)], message: &str, hint: &str| {
        let (_folder, path) = file("a.csv", "question,answer\na,b\n");
        let Err(Error::Invalid { message: found, hint: Some(found_hint), .. }) =
            read_examples(&path, &mapping(pairs))
        else {
            panic!("not refused")
        };
        assert!(found.starts_with(message) && found_hint.contains(hint), "{found}\n{found_hint}");
    };
    check(&[("prompt", "q")], "columns: there is no column \"q\"", "the file has question, answer");
    check(&[("answer", "answer")], "columns: there is no role \"answer\"", "messages, tools");
    check(
        &[("prompt", "question"), ("output", "answer")],
        "columns: no kind of row has output and prompt together",
        "or prompt and completion",
    );
    check(&[], "Row 0 (line 2): no known shape: its fields are question, answer", "columns=prompt=question");
}

#[test]
fn columns_are_those_of_the_first_rows_with_short_examples() {
    let long = "word ".repeat(100);
    let rows = format!("{}\n{}\n", json!({"text": long, "n": 1}), json!({"text": "a", "tags": ["b"]}));
    let (_folder, path) = file("a.jsonl", rows);
    let views = read_examples(&path, &BTreeMap::new()).unwrap().columns;
    let found: Vec<_> = views.iter().map(|view| (view.name.as_str(), view.role.as_deref())).collect();
    assert_eq!(found, [("text", Some("text")), ("n", None), ("tags", None)]);
    assert_eq!(views[0].example, format!("{}…", "word ".repeat(16)));
    assert_eq!((views[1].example.as_str(), views[2].example.as_str()), ("1", "[\"b\"]"));
}

#[test]
fn files_that_are_no_data_are_refused() {
    let check =
        |name: &str, content: &[u8], expected: &str| assert_eq!(complaint(load(name, content)), expected);
    check("a.jsonl", b"", "The data file is empty (0 bytes)");
    check("a.jsonl", b"\n \n", "The data file has no rows (3 bytes)");
    check("a.txt", b" \n", "The data file has no rows (2 bytes)");
    check("a.csv", b"prompt,completion\n", "The data file has no rows (18 bytes)");
    check(
        "a.jsonl",
        b"{}\n\n{\"text\": \"caf\xe9\"}",
        "Row 1 (line 3): not UTF-8 at byte 14 of the line (0xe9)",
    );
    check("a.txt", b"one\ncaf\xe9", "Line 2: not UTF-8 at byte 4 of the line (0xe9)");
    check("a.txt", b"\xff\xfeh\0i\0", "The data file is UTF-16, not UTF-8");
    check(
        "a.parquet",
        b"PAR1",
        "Not a readable Parquet file: EOF: Parquet file too small. Size is 4 but need 8",
    );
    check("a.docx", b"PK", "Unknown kind of data file .docx");
    check("data", b"x", "The data file has no extension");
    assert!(matches!(read_examples(Path::new("/nowhere/a.jsonl"), &BTreeMap::new()), Err(Error::Io { .. })));
}

#[test]
fn the_bad_samples_are_refused_where_they_are_bad() {
    let bad = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/bad");
    let check = |name: &str, expected: &str| assert_eq!(complaint(load_path(&bad.join(name))), expected);
    check("bad_json_line.jsonl", "Row 2 (line 3): bad JSON at column 134: EOF while parsing an object");
    check("empty.jsonl", "The data file is empty (0 bytes)");
    check("empty_assistant.jsonl", "Row 1 (line 2), messages[1].content: the assistant's content is empty");
    check("not_utf8.jsonl", "Row 1 (line 2): not UTF-8 at byte 89 of the line (0xe9)");
    check("unknown_role.jsonl", "Row 1 (line 2), messages[1].role: unknown role \"narrator\"");
    assert!(load_path(&bad.join("nothing_to_learn.jsonl")).is_ok());
}

fn parquet(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/parquet").join(name)
}

#[test]
fn parquet_is_read_as_pyarrow_pandas_and_datasets_write_it() {
    for name in ["snappy.parquet", "zstd.parquet", "gzip.parquet", "lz4.parquet", "datasets.parquet"] {
        let (shape, rows) = load_path(&parquet(name)).unwrap();
        assert_eq!((shape, rows.len()), (DatasetShape::Messages, 5), "{name}");
        assert_eq!(turns(&rows[4]), [(Role::User, "What is 4?"), (Role::Assistant, "Näher: 4")], "{name}");
    }
    let dataset = read_examples(&parquet("groups.parquet"), &BTreeMap::new()).unwrap();
    assert_eq!(dataset.examples.len(), 300);
    assert_eq!(dataset.examples[299].fields["id"], 299);
    assert_eq!(dataset.examples[299].fields["score"], 149.5);
    assert_eq!(dataset.examples[4].fields["tags"], json!(["a"]));
}

#[test]
fn columns_of_parquet_are_mapped_and_missing_ones_named() {
    let path = parquet("pandas.parquet");
    let error = |pairs: &[(&str, &str)]| match read_examples(&path, &mapping(pairs)) {
        Err(Error::Invalid { message, hint, .. }) => (message, hint.unwrap_or_default()),
        other => panic!("{other:?}"),
    };
    let (message, hint) = error(&[("prompt", "question"), ("completion", "reply")]);
    assert!(message.starts_with("columns: there is no column \"reply\" to take for completion"), "{message}");
    assert_eq!(hint, "the file has question, answer");
    let (message, _) = error(&[("prompt", "question"), ("completion", "answer")]);
    assert!(message.starts_with("Row 1, completion: missing field"), "{message}");
}

#[test]
fn broken_parquet_is_refused() {
    let bytes = std::fs::read(parquet("groups.parquet")).unwrap();
    let message = |bytes: &[u8]| {
        let (_folder, path) = file("a.parquet", bytes);
        read_examples(&path, &BTreeMap::new()).unwrap_err().to_string()
    };
    assert!(message(&bytes[..bytes.len() / 2]).starts_with("Not a readable Parquet file"));
    let mut changed = bytes.clone();
    changed[1000..1040].fill(0xff);
    let found = message(&changed);
    assert!(found.contains("of the Parquet file cannot be read"), "{found}");
}

#[test]
fn a_window_is_counted_through_all_files() {
    let folder = tempfile::tempdir().unwrap();
    let files = ["a.jsonl", "b.jsonl"].map(|name| {
        let path = folder.path().join(name);
        std::fs::write(&path, format!("{ROW}\n\n{ROW}\n{ROW}\n")).unwrap();
        DataFile::new(path.display().to_string())
    });
    let rows = |row, count| -> Vec<(usize, usize)> {
        let windows = read_window(&files, row, count).unwrap();
        windows.iter().flat_map(|window| &window.examples).map(|row| (row.row, row.line)).collect()
    };
    assert_eq!(rows(0, 1), [(0, 1)]);
    assert_eq!(rows(1, 3), [(1, 3), (2, 4), (3, 1)]);
    assert_eq!(rows(5, 9), [(5, 4)]);
    let error = read_window(&files, 6, 1).unwrap_err().to_string();
    assert!(error.starts_with("There is no row 6: the files have 6 rows: "), "{error}");
}

#[test]
fn rows_beyond_the_first_thousand_are_held_to_the_files_shape() {
    let rows = format!("{}{}", format!("{ROW}\n").repeat(1500), "{\"text\": \"Hi\"}");
    assert_eq!(
        complaint(load("a.jsonl", rows)),
        "Row 1500 (line 1501): mixed shapes: this row is text, the first row is messages"
    );
}
