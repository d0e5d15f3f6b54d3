//! What the crate does beside generating: threads, lifetimes, files, and what is wrong.

mod common;

use std::fs;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Arc;
use std::thread;

use common::{cases, dense, folder, generate, model, runtime, variable};
use sol_rt::{Code, Finish, GenerateOptions, Governor, Model, ModelOptions, Reading, Runtime, Schedule, Session, Verify};

fn code<T>(result: Result<T, sol_rt::Error>) -> Code {
    let Err(error) = result else { panic!("no error") };
    assert!(!error.to_string().is_empty() && !error.to_string().contains('\n'), "{error}");
    error.code()
}

#[test]
fn an_iterator_streams_and_ends() {
    let mut session = model().session().unwrap();
    let prompt = cases()[0].prompt.clone();
    let options = GenerateOptions { top_logprobs: Some(3), ..dense(12) };
    let tokens: Vec<_> = session.generate(&prompt, &options).unwrap().map(Result::unwrap).collect();
    assert_eq!(tokens.len(), 12);
    assert_eq!(tokens[11].finish, Finish::Length);
    assert!(tokens.iter().all(|token| token.top_logprobs.len() == 3 && token.top_logprobs[0].0 == token.token));
    assert_eq!(session.result().unwrap().tokens, 12);
    assert_eq!(session.result().unwrap().schedule, "dense");
    let first: Vec<_> = session.generate(&prompt, &dense(12)).unwrap().take(3).map(|token| token.unwrap().token).collect();
    assert_eq!(first, tokens[..3].iter().map(|token| token.token).collect::<Vec<_>>());
    assert!(!session.control().is_busy(), "dropping the iterator ends the generation");
    let options = GenerateOptions { logit_bias: vec![(7, 100.0)], ..dense(4) };
    assert!(session.generate(&prompt, &options).unwrap().all(|token| token.unwrap().token == 7));
    let options = GenerateOptions { end_tokens: Some(vec![first[2]]), ..dense(9) };
    let ended = session.generate(&prompt, &options).unwrap().count();
    assert_eq!(ended, 1 + first.iter().position(|token| *token == first[2]).unwrap());
}

#[test]
fn a_model_says_what_it_is() {
    let info = model().info().unwrap();
    assert!(info.mapped_bytes > 0 && info.layers > 0 && info.identity.len() == 64);
    let actions = model().actions().unwrap();
    assert!(actions.iter().any(|action| action.tag == info.dense));
    assert!(!sol_rt::version().is_empty() && runtime().ort_version().starts_with("1."));
    if info.has_tokenizer {
        let words = ["w3"; 3000].join(" ");
        assert_eq!(model().decode(&model().encode(&words, false, false).unwrap(), true).unwrap().trim(), words);
        assert_eq!(model().encode("", false, false).unwrap(), []);
        model().encode("\u{1f600} \0 é", true, true).unwrap();
    }
    if info.has_chat {
        assert!(model().encode_chat(&[("user", "w1")]).unwrap().len() > 1);
    } else {
        assert_eq!(code(model().encode_chat(&[("user", "w1")])), Code::Text);
    }
}

#[test]
fn forward_gives_the_logits_of_a_generation() {
    let mut session = model().session().unwrap();
    let expected = generate(&mut session, 6).unwrap();
    session.rewind(0).unwrap();
    let mut run = cases()[0].prompt.clone();
    for token in expected {
        let made = session.forward(&run, None).unwrap();
        let best = made.logits.iter().copied().fold(f32::MIN, f32::max);
        assert_eq!(made.logits.iter().position(|logit| *logit == best), Some(token as usize));
        assert_eq!(made.hidden.len(), model().info().unwrap().hidden_size);
        run = vec![token];
    }
    assert_eq!(code(session.forward(&[1], Some("k100"))), Code::Usage);
    assert_eq!(code(session.forward(&[], None)), Code::Usage);
}

#[test]
fn a_score_has_the_numbers_of_the_generation() {
    let mut session = model().session().unwrap();
    let options = GenerateOptions { budget: Some(0.6), schedule: Some("hull".into()), ..dense(20) };
    let mut tokens = cases()[0].prompt.clone();
    let context = tokens.len();
    let made: Vec<_> = session.generate(&tokens, &options).unwrap().map(Result::unwrap).collect();
    tokens.extend(made.iter().map(|token| token.token));
    let scores = session.score(&tokens, context, &options).unwrap();
    assert_eq!(scores.logprobs, made.iter().map(|token| token.logprob).collect::<Vec<_>>());
    assert_eq!(scores.actions, made[1..].iter().map(|token| token.action.clone()).collect::<Vec<_>>());
    assert_eq!(scores.costs, made[1..].iter().map(|token| token.cost).collect::<Vec<_>>());
    assert_eq!((scores.schedule.as_str(), scores.achieved_budget), ("hull", made[19].achieved_budget));
    for wrong in [0, tokens.len(), tokens.len() + 1] {
        assert_eq!(code(session.score(&tokens, wrong, &options)), Code::Usage);
    }
}

#[test]
fn a_schedule_of_the_hosts_picks_the_actions() {
    let mut session = model().session().unwrap();
    let prompt = cases()[0].prompt.clone();
    let info = model().info().unwrap();
    let tag = model().actions().unwrap()[5].tag.clone();
    let calls = Arc::new(AtomicUsize::new(0));
    let (counted, wanted) = (calls.clone(), tag.clone());
    let choose = Schedule::new(move |choice| {
        assert_eq!(choice.step, counted.fetch_add(1, Ordering::Relaxed));
        assert_eq!((choice.hidden.len(), choice.logits.len()), (info.hidden_size, info.vocab_size));
        assert_eq!((choice.relative_costs.len(), choice.allowed.len()), (choice.actions.len(), choice.actions.len()));
        assert!(choice.budget == Some(0.9) && choice.entropy > 0.0 && choice.margin <= choice.top_probability);
        choice.actions.iter().position(|action| *action == wanted).unwrap()
    });
    let options = GenerateOptions { budget: Some(0.9), schedule: Some("mine".into()), choose: Some(choose), ..dense(12) };
    let fixed = GenerateOptions { schedule: Some(format!("fixed:{tag}")), ..dense(12) };
    let mut run = |options: &GenerateOptions| session.generate(&prompt, options).unwrap().map(|token| token.unwrap().token).collect::<Vec<_>>();
    let expected = run(&fixed);
    assert_eq!(run(&options), expected);
    assert_eq!(session.result().unwrap().schedule, "mine");
    assert_eq!(calls.swap(0, Ordering::Relaxed), 11);
    assert!(session.score(&prompt, 1, &options).unwrap().actions.iter().all(|action| *action == tag));
    let failing = GenerateOptions { choose: Some(Schedule::new(|_| panic!("mine"))), schedule: None, ..dense(12) };
    let run = catch_unwind(AssertUnwindSafe(|| session.generate(&prompt, &failing).unwrap().map(Result::unwrap).count()));
    assert_eq!(*run.unwrap_err().downcast_ref::<&str>().unwrap(), "mine");
    let wrong = GenerateOptions { choose: Some(Schedule::new(|_| usize::MAX)), schedule: None, ..dense(12) };
    assert_eq!(code(session.score(&prompt, 1, &wrong)), Code::Usage);
}

#[test]
fn costs_of_the_hosts() {
    let own = Model::load(runtime(), folder("SOL_TEST_BUNDLE")).unwrap();
    let line = |key: &&str| format!(r#""{key}": {{"1.0": {{"fixed": {}, "per_token": 0, "per_page": 0, "error": 0}}}}"#, if *key == "s100-q4" { 2 } else { 8 });
    let lines: Vec<_> = ["s100-q8", "s100-q6", "s100-qmix", "s100-q4", "s060-q8", "s060-q6", "s060-q4"].iter().map(line).collect();
    let head = r#""format": "sol_rt.cost_table", "format_version": 1, "device": "", "created": "", "policy_ms": 0, "quick": false, "steady": true"#;
    let table = format!(r#"{{{head}, "tuning": null, "bundle": "{}", "lines": {{{}}}}}"#, own.info().unwrap().identity, lines.join(", "));
    own.set_costs(Some(&table)).unwrap();
    assert_eq!(own.info().unwrap().cost_model, "measured");
    let cost = |tag: &str| own.actions().unwrap().iter().find(|action| action.tag == tag).unwrap().relative_cost;
    assert_eq!(cost("k100-s100-q4"), 0.25);
    assert_eq!(code(own.set_costs(Some("{}"))), Code::Bundle);
    own.set_costs(None).unwrap();
    assert_eq!(own.info().unwrap().cost_model, "bytes");
}

#[test]
fn cancel_ends_a_generation_in_mid_token() {
    let mut session = model().session().unwrap();
    let expected = generate(&mut session, 8).unwrap();
    let prompt = cases()[0].prompt.clone();
    for _ in 0..20 {
        let over = AtomicBool::new(false);
        let control = session.control();
        thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    control.cancel();
                }
            });
            let failed = loop {
                let run = session.generate(&prompt, &dense(100)).and_then(|mut tokens| tokens.find_map(Result::err).map_or(Ok(()), Err));
                if let Err(error) = run {
                    break error;
                }
            };
            assert_eq!(failed.code(), Code::Cancelled);
            over.store(true, Ordering::Relaxed);
        });
        session.rewind(0).unwrap(); // forgets a cancel that came after the end
    }
    let mut tokens = session.generate(&prompt, &dense(8)).unwrap();
    let control = tokens.control();
    assert_eq!(tokens.next().unwrap().unwrap().token, expected[0]);
    control.cancel();
    assert_eq!(code(tokens.next().unwrap()), Code::Cancelled);
    assert!(tokens.next().is_none());
    drop(tokens);
    assert_eq!(generate(&mut session, 8).unwrap(), expected);
    let control = session.control();
    for token in session.generate(&prompt, &dense(8)).unwrap() {
        if token.unwrap().finish != Finish::None {
            control.cancel(); // too late for this text
        }
    }
    assert_eq!(generate(&mut session, 8).unwrap(), expected);
}

#[test]
fn a_budget_moves_while_text_streams() {
    let mut session = model().session().unwrap();
    let control = session.control();
    let options = GenerateOptions { budget: Some(1.0), schedule: Some("uniform".into()), ..dense(24) };
    let mut costs = Vec::new();
    for token in session.generate(&cases()[0].prompt, &options).unwrap() {
        costs.push(token.unwrap().relative_cost);
        if costs.len() == 8 {
            thread::scope(|scope| scope.spawn(|| control.set_budget(0.5).unwrap()).join().unwrap());
            assert_eq!(code(control.set_budget(1.5)), Code::Usage);
            assert_eq!(code(control.set_budget(f64::NAN)), Code::Usage);
            assert_eq!(code(control.set_tokens_per_second(20.0)), Code::Usage);
        }
    }
    assert!(costs[1..8].iter().all(|cost| *cost == 1.0));
    assert!(costs[8..].iter().sum::<f64>() / 16.0 < 0.9, "{costs:?}");
    assert_eq!(code(control.set_budget(0.5)), Code::Usage);
}

#[test]
fn drafts_give_the_dense_text() {
    let mut session = model().session().unwrap();
    let prompt = cases()[0].prompt.repeat(4);
    let expected: Vec<_> = session.generate(&prompt, &dense(60)).unwrap().map(|token| token.unwrap().token).collect();
    assert_eq!(session.result().unwrap().drafted_tokens, 0);
    for options in [GenerateOptions { lossless: true, ..dense(60) }, GenerateOptions { lookup: true, ..dense(60) }] {
        let mut drafted = 0;
        for _ in 0..8 {
            let made: Vec<_> = session.generate(&prompt, &options).unwrap().map(|token| token.unwrap().token).collect();
            assert_eq!(made, expected);
            let result = session.result().unwrap();
            assert!(result.accepted_tokens <= result.drafted_tokens);
            drafted += result.drafted_tokens;
        }
        assert!(drafted > 0);
    }
    let options = GenerateOptions { lossless: true, budget: Some(0.5), ..Default::default() };
    assert_eq!(code(session.generate(&prompt, &options).map(drop)), Code::Usage);
}

#[test]
fn what_is_dropped_during_a_generation() {
    let own = Model::load(runtime(), folder("SOL_TEST_BUNDLE")).unwrap();
    let mut session = own.session().unwrap();
    drop(own);
    let control = session.control();
    let prompt = cases()[0].prompt.clone();
    let mut tokens = session.generate(&prompt, &dense(50)).unwrap();
    tokens.next().unwrap().unwrap();
    drop(tokens);
    drop(session);
    control.cancel();
    assert!(!control.is_busy());
    assert_eq!(code(control.set_budget(0.5)), Code::Usage);
    // Another thread uses the control while the session goes.
    for _ in 0..20 {
        let mut session = model().session().unwrap();
        let control = session.control();
        let other = thread::spawn(move || while control.set_budget(0.5).is_ok() || control.is_busy() {});
        let mut tokens = session.generate(&prompt, &GenerateOptions { budget: Some(1.0), ..dense(50) }).unwrap();
        tokens.next().unwrap().unwrap();
        drop(tokens);
        drop(session);
        other.join().unwrap();
    }
}

#[test]
fn two_models_run_at_once() {
    let expected = generate(&mut model().session().unwrap(), 30).unwrap();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let own = Model::load(runtime(), folder("SOL_TEST_BUNDLE")).unwrap();
                assert_eq!(generate(&mut own.session().unwrap(), 30).unwrap(), expected);
            });
        }
    });
}

#[test]
fn a_thousand_loads() {
    for index in 0..1000 {
        let own = Model::load(runtime(), folder("SOL_TEST_BUNDLE")).unwrap();
        let mut session = own.session().unwrap();
        if index % 250 == 0 {
            generate(&mut session, 2).unwrap();
        }
    }
}

#[test]
fn a_session_goes_to_a_file_and_back() {
    let file = folder("SOL_TEST_SCRATCH").join("rust-session");
    let (mut session, mut second) = (model().session().unwrap(), model().session().unwrap());
    let expected = generate(&mut session, 10).unwrap();
    session.save(&file).unwrap();
    second.restore(&file).unwrap();
    assert_eq!(session.tokens().unwrap(), second.tokens().unwrap());
    let prompt = &cases()[0].prompt;
    session.rewind(prompt.len()).unwrap();
    assert_eq!(&session.tokens().unwrap(), prompt);
    assert!(session.private_bytes() > 0);
    assert_eq!(code(session.rewind(1_000_000)), Code::Usage);
    code(session.restore(folder("SOL_TEST_BUNDLE").join("weights.bin")));
    code(session.restore(file.with_extension("none")));
    assert_eq!(generate(&mut second, 10).unwrap(), expected);
    let full = folder("SOL_TEST_FULL").join("rust-session");
    assert_eq!(code(second.save(&full)), Code::Write);
    assert!(!full.exists(), "no half of a file is left");
    assert_eq!(code(second.save("/none/session")), Code::Write);
    assert_eq!(generate(&mut second, 10).unwrap(), expected);
}

#[test]
fn a_replay_keeps_the_settings_of_its_trace() {
    let run = |options: &GenerateOptions| -> (Vec<i32>, String, Finish) {
        let mut session = model().session().unwrap();
        let tokens: Vec<_> = session.generate(&cases()[0].prompt, options).unwrap().map(Result::unwrap).collect();
        (tokens.iter().map(|token| token.token).collect(), tokens.iter().map(|token| &*token.text).collect(), tokens.last().unwrap().finish)
    };
    let (first, ..) = run(&dense(1));
    let biased = GenerateOptions { logit_bias: vec![(first[0], -100.0)], ..dense(12) };
    let (_, text, _) = run(&biased);
    let stop: String = text.chars().skip(text.chars().count() / 2).take(3).collect();
    let trace = Some(folder("SOL_TEST_SCRATCH").join("rust-trace"));
    let recorded = run(&GenerateOptions { stop_strings: Some(vec![stop]), trace: trace.clone(), ..biased });
    assert_eq!(recorded.2, Finish::Stop);
    assert_eq!(run(&GenerateOptions { replay: trace.clone(), ..Default::default() }), recorded);
    let (.., finish) = run(&GenerateOptions { stop_strings: Some(Vec::new()), replay: trace, ..Default::default() });
    assert_eq!(finish, Finish::Length, "an empty list is none");
}

#[test]
fn a_prompt_runs_through_another_variant() {
    let load = |key| Model::load_with(runtime(), folder("SOL_TEST_BUNDLE"), ModelOptions { prefill: Some(key), ..Default::default() });
    let trace = folder("SOL_TEST_SCRATCH").join("rust-prefill-trace");
    let mut session = load("s100-q4").unwrap().session().unwrap();
    let options = GenerateOptions { trace: Some(trace.clone()), ..dense(3) };
    let tokens: Vec<_> = session.generate(&cases()[0].prompt, &options).unwrap().map(Result::unwrap).collect();
    assert_eq!(tokens[0].action, "k100-s100-q4");
    assert_eq!(tokens[1].action, model().info().unwrap().dense);
    let text = fs::read_to_string(&trace).unwrap();
    assert!(text.lines().next().unwrap().contains("\"prefill\":\"s100-q4\""), "{text}");
    let mut replaying = model().session().unwrap();
    let replay = GenerateOptions { replay: Some(trace), ..Default::default() };
    assert_eq!(replaying.generate(&cases()[0].prompt, &replay).unwrap().map(Result::unwrap).next().unwrap().action, "k100-s100-q4");
    let Err(error) = load("s001-q4") else { panic!("no error") };
    assert!(error.to_string().starts_with("--prefill: got 's001-q4', expected one of the bundle's variants: s100-q8, "), "{error}");
    assert_eq!(error.code(), Code::Usage);
    assert_eq!(code(load("a\0b")), Code::Usage);
}

#[test]
fn what_cannot_be_loaded() {
    let scratch = folder("SOL_TEST_SCRATCH");
    for wrong in [scratch.join("none"), scratch.clone(), "/dev/null".into(), "".into()] {
        assert_eq!(code(Model::load(runtime(), wrong)), Code::Bundle);
    }
    assert_eq!(code(Model::load(runtime(), "a\0b")), Code::Usage);
    let damaged: Vec<_> = fs::read_dir(folder("SOL_TEST_DAMAGED")).unwrap().collect();
    assert!(damaged.len() >= 5);
    for folder in damaged {
        assert_eq!(code(Model::load(runtime(), folder.unwrap().path())), Code::Bundle);
    }
}

#[test]
fn runtimes_that_cannot_be_used_and_a_newer_one() {
    let runtimes = fs::read_to_string(variable("SOL_TEST_RUNTIMES")).unwrap();
    assert!(runtimes.lines().count() >= 7, "absent, wrong and old ones");
    for line in runtimes.lines() {
        let [path, begin, end] = line.split('\t').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let Err(error) = Runtime::open(path) else { panic!("{path} is taken") };
        let message = error.to_string();
        assert!(message.starts_with(begin) && message.ends_with(end) && !message.contains('\n'), "{message}");
        assert_eq!(error.code(), Code::Runtime);
    }
    let newer = Runtime::open(&variable("SOL_TEST_NEWER")).unwrap();
    assert_eq!(newer.ort_version(), "1.99.0");
    let model = Model::load(&newer, folder("SOL_TEST_BUNDLE")).unwrap();
    assert_eq!(generate(&mut model.session().unwrap(), 3).unwrap().len(), 3);
}

#[test]
fn what_is_out_of_range() {
    let mut session = model().session().unwrap();
    let prompt = cases()[0].prompt.clone();
    let wrong = [
        GenerateOptions { budget: Some(2.0), ..Default::default() },
        GenerateOptions { budget: Some(0.5), max_loss: Some(0.1), ..Default::default() },
        GenerateOptions { schedule: Some("none".into()), ..Default::default() },
        GenerateOptions { schedule: Some("a\0b".into()), ..Default::default() },
    ];
    for options in wrong {
        assert_eq!(code(session.generate(&prompt, &options)), Code::Usage, "{options:?}");
    }
    assert_eq!(code(session.generate(&[], &dense(1))), Code::Usage);
    assert_eq!(code(session.generate(&[1 << 30], &dense(1))), Code::Usage);
    let long = vec![1; 100_000];
    code(session.generate(&long, &dense(1)).and_then(|mut tokens| tokens.next().unwrap()));
    assert_eq!(generate(&mut session, 3).unwrap().len(), 3);
}

#[test]
fn a_panic_in_progress_comes_out_of_the_load() {
    let load = |progress: &mut dyn FnMut(&str, u64, u64) -> bool| {
        let mut call = |what: &str, done, total| progress(what, done, total);
        Model::load_with(runtime(), folder("SOL_TEST_BUNDLE"), ModelOptions { verify: Verify::All, progress: Some(&mut call), ..Default::default() })
    };
    let mut seen = 0;
    load(&mut |_, done, total| {
        seen += 1;
        done <= total
    })
    .unwrap();
    assert!(seen > 0);
    assert_eq!(code(load(&mut |_, _, _| false)), Code::Host);
    let Err(panic) = catch_unwind(AssertUnwindSafe(|| load(&mut |_, _, _| panic!("mine")))) else { panic!("no panic") };
    assert_eq!(*panic.downcast_ref::<&str>().unwrap(), "mine");
}

#[test]
fn the_governor_follows_its_recorded_curves() {
    let text = fs::read_to_string(folder("SOL_TEST_CASES").with_file_name("governor.tsv")).unwrap();
    let number = |field: &str| field.parse::<f64>().ok();
    let mut curve = (String::new(), None);
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let fields: Vec<&str> = line.split('\t').collect();
        if curve.0 != fields[0] {
            curve = (fields[0].to_owned(), Some(Governor::new(number(fields[1]).unwrap(), number(fields[2]).unwrap(), number(fields[3])).unwrap()));
        }
        let charging = number(fields[5]).map(|value| value == 1.0);
        let reading = Reading { battery: number(fields[4]), charging, thermal: number(fields[6]), tokens_per_second: number(fields[7]) };
        let budget = curve.1.as_mut().unwrap().step(reading).unwrap();
        assert!((budget - number(fields[8]).unwrap()).abs() < 1e-9, "{line}: {budget}");
    }
    assert!(curve.1.is_some());
}

#[test]
fn the_governor_holds_its_bounds() {
    let mut governor = Governor::new(0.4, 0.9, None).unwrap();
    for step in 0..200 {
        let thermal = Some(if step < 100 { 1.5 } else { 0.1 });
        let budget = governor.step(Reading { battery: Some(0.5), charging: Some(step % 2 == 0), thermal, tokens_per_second: None }).unwrap();
        assert!((0.4..=0.9).contains(&budget));
        assert!(step != 99 || budget < 0.9, "heat lowers the budget");
    }
    assert_eq!(code(Governor::new(0.9, 0.4, None)), Code::Usage);
}

#[test]
fn handles_may_go_to_other_threads() {
    fn send<T: Send>() {}
    fn sync<T: Sync>() {}
    send::<Session>();
    send::<sol_rt::Control>();
    sync::<sol_rt::Control>();
    sync::<Model>();
    sync::<Runtime>();
}
