//! `lathe serve-ui` in real browsers: two of them on one host, and a line that is cut.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a failing test may panic")]

#[path = "../../serve/tests/support/proxy.rs"]
mod proxy;

use std::{process::Command, time::Duration};

use lathe_tests::{
    Lathe,
    driver::{Browser, Driver},
    program, repo,
};
use proxy::Proxy;

/// Too many to end before the test stops it.
const STEPS: usize = 3000;

/// A paused run, begun in a terminal; its id.
fn paused_run(lathe: &Lathe) -> String {
    let (data, steps) =
        (repo("resources/samples/pirate.jsonl").display().to_string(), format!("max_steps={STEPS}"));
    let mut args =
        vec!["train", "--model", "starter", "--data", &data, "--name", "pirate", "--device", "cpu"];
    for setting in [&steps, "max_seq_len=64", "batch_size=1", "grad_accum=1", "lora.r=4", "save_steps=1000"] {
        args.extend(["--set", setting]);
    }
    let mut running = lathe.start(&args);
    running.step(5);
    assert!(lathe.run(&["runs", "stop", "pirate"]).status.success());
    assert!(running.child.wait().unwrap().success());
    lathe.json(&["runs", "list"])[0]["runs"][0]["id"].as_str().unwrap().to_owned()
}

fn step_of(title: &str) -> Option<usize> {
    title.split_once("pirate, step ")?.1.split(' ').next()?.parse().ok()
}

fn wait_for_step(browser: &Browser, step: usize) -> usize {
    step_of(&browser.wait_for_title(|title| step_of(title).is_some_and(|at| at >= step))).unwrap()
}

#[test]
fn two_browsers_look_at_one_host_and_a_cut_line_mends() {
    let Some(driver) = Driver::start() else {
        println!("skipped: no chromedriver here (Debian: apt install chromium-driver)");
        return;
    };
    if lathe_serve::find_folder(&program()).is_err() {
        println!("skipped: no page to serve; `cargo xtask wasm` makes it");
        return;
    }
    let lathe = Lathe::new();
    let run = paused_run(&lathe);
    let mut server = lathe.start(&["serve-ui", "--listen", "127.0.0.1:0"]);
    let link = server.next("link").unwrap()["url"].as_str().unwrap().to_owned();
    let place = link.strip_prefix("http://").unwrap().split('/').next().unwrap();

    // 1. One comes in over a line that will be cut, the other straight. A link that was used lets nobody in.
    let proxy = Proxy::start(place.parse().unwrap());
    let (one, two) = (driver.browser(), driver.browser());
    one.open(&link.replace(place, &proxy.address.to_string()));
    one.wait_for_title(|title| title == "Bench · Lathe");
    two.open(&link);
    let refused = "return document.getElementById('message').textContent";
    while two.run(refused) == "Loading Lathe…" {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(two.run(refused), "This link is wrong, or was used before");
    let next = server.next("link").unwrap()["url"].as_str().unwrap().to_owned();
    two.open("about:blank");
    two.open(&next);
    two.wait_for_title(|title| title == "Bench · Lathe");
    assert_eq!(two.run("return location.hash + document.cookie"), "", "the token and the cookie are hidden");
    one.screenshot("bench");

    // 2. One goes to the run by its address and has it go on; the other sees it.
    one.run(&format!("location.hash = '/runs/{run}'"));
    one.wait_for_title(|title| title == "pirate · Lathe");
    one.click_primary_button();
    wait_for_step(&one, 6);
    two.run(&format!("location.hash = '/runs/{run}'"));
    let step = wait_for_step(&two, 10);

    // 3. The line is cut while it trains, and mends; nothing is asked anew by hand.
    proxy.cut();
    one.wait_for_title(|title| title == "Connection lost · Lathe");
    one.screenshot("connection-lost");
    proxy.mend();
    let meanwhile = wait_for_step(&one, step + 1);
    wait_for_step(&two, meanwhile);
    one.screenshot("run");

    // 4. A page that is loaded anew is where it was.
    two.run("window.before = true; location.reload()");
    while two.run("return window.before") == true {
        std::thread::sleep(Duration::from_millis(50));
    }
    wait_for_step(&two, meanwhile);
    for (place, page) in [
        ("models", "Models · Lathe"),
        ("chat", "Chat · Lathe"),
        ("adapters", "Adapters · Lathe"),
        ("settings", "Settings · Lathe"),
        ("runs", "Runs · Lathe"),
        ("new", "New fine-tune · Lathe"),
    ] {
        two.run(&format!("location.hash = '/{place}'"));
        two.wait_for_title(|title| title == page);
        two.screenshot(place);
    }

    // 5. A chat, typed and answered.
    two.run("location.hash = '/chat'");
    two.wait_for_title(|title| title == "Chat · Lathe");
    two.wait_for_field();
    two.type_text("Who are you?");
    two.wait_for("an answer", || {
        // Does nothing before the models are known, and nothing more once it was sent.
        two.type_text("\u{E007}");
        lathe.has_saved("I am Lathe starter")
    });
    two.screenshot("answer");

    // 6. Ctrl-C: what trains is saved.
    assert!(Command::new("kill").args(["-INT", &server.child.id().to_string()]).status().unwrap().success());
    assert!(server.child.wait().unwrap().success());
    let runs = lathe.json(&["runs", "list"]);
    let run = &runs[0]["runs"][0];
    assert_eq!((&run["name"], &run["status"]), (&"pirate".into(), &"stopped".into()), "{run}");
    assert!(run["step"].as_u64().unwrap() >= meanwhile as u64, "{run}");
    one.wait_for_title(|title| title == "Connection lost · Lathe");
}
