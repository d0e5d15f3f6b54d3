//! What both test programs use. ../test.sh sets the variables SOL_TEST_..., which ../test-lib.sh describes.
#![allow(dead_code)]

use std::path::PathBuf;
use std::sync::OnceLock;
use std::{env, fs};

use sol_rt::{Error, GenerateOptions, Model, Runtime, Session};

pub fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run test.sh"))
}

pub fn folder(name: &str) -> PathBuf {
    variable(name).into()
}

pub fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| Runtime::open(&variable("SOL_TEST_ORT")).unwrap())
}

pub fn model() -> &'static Model {
    static MODEL: OnceLock<Model> = OnceLock::new();
    MODEL.get_or_init(|| Model::load(runtime(), folder("SOL_TEST_BUNDLE")).unwrap())
}

/// One line of cases.tsv, whose first lines describe its fields.
pub struct Case {
    pub name: String,
    /// True if only hosts with native operators play it.
    pub native_only: bool,
    pub prompt: Vec<i32>,
    pub options: GenerateOptions,
    /// Decode step and the budget that the host sets before it.
    pub budget_at: Vec<(usize, f64)>,
    pub tokens: Vec<i32>,
    pub actions: Vec<String>,
    pub costs: Vec<f64>,
    pub text: String,
}

pub fn cases() -> Vec<Case> {
    let text = fs::read_to_string(variable("SOL_TEST_CASES")).unwrap();
    let native = model().info().unwrap().native_operators;
    let mut cases: Vec<Case> = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(case).collect();
    cases.retain(|case| native || !case.native_only);
    cases
}

fn case(line: &str) -> Case {
    let fields: Vec<&str> = line.split('\t').collect();
    let (options, budget_at) = options(fields[2]);
    Case {
        name: fields[0].to_owned(),
        native_only: fields[2].split_whitespace().any(|word| word == "native=1"),
        prompt: ints(fields[1]),
        options,
        budget_at,
        tokens: ints(fields[3]),
        actions: fields[4].split_whitespace().map(str::to_owned).collect(),
        costs: fields[5].split_whitespace().map(|word| word.parse().unwrap()).collect(),
        text: unquote(fields[6]),
    }
}

fn ints(field: &str) -> Vec<i32> {
    field.split_whitespace().map(|word| word.parse().unwrap()).collect()
}

fn options(field: &str) -> (GenerateOptions, Vec<(usize, f64)>) {
    let mut options = GenerateOptions::default();
    let mut budget_at = Vec::new();
    for word in field.split_whitespace() {
        let (key, value) = word.split_once('=').unwrap();
        let number = || Some(value.parse::<f64>().unwrap());
        let count = || Some(value.parse::<i32>().unwrap());
        match key {
            "budget" => options.budget = number(),
            "schedule" => options.schedule = Some(value.to_owned()),
            "max_loss" => options.max_loss = number(),
            "tokens_per_second" => options.tokens_per_second = number(),
            "kv_density" => options.kv_density = number(),
            "channel_density" => options.channel_density = number(),
            "bits" => options.bits = number(),
            "max_new_tokens" => options.max_new_tokens = count(),
            "do_sample" => options.do_sample = Some(matches!(value, "1" | "true" | "True")),
            "temperature" => options.temperature = number(),
            "top_k" => options.top_k = count(),
            "top_p" => options.top_p = number(),
            "min_p" => options.min_p = number(),
            "repetition_penalty" => options.repetition_penalty = number(),
            "presence_penalty" => options.presence_penalty = number(),
            "frequency_penalty" => options.frequency_penalty = number(),
            "seed" => options.seed = Some(value.parse().unwrap()),
            "native" => {}
            "budget_at" => {
                budget_at = value.split(',').map(|pair| pair.split_once(':').unwrap()).map(|(step, b)| (step.parse().unwrap(), b.parse().unwrap())).collect()
            }
            _ => panic!("unknown option {word}"),
        }
    }
    (options, budget_at)
}

/// The text of a JSON string.
fn unquote(json: &str) -> String {
    let mut units = Vec::new();
    let mut rest = json[1..json.len() - 1].chars();
    while let Some(c) = rest.next() {
        let plain = match c {
            '\\' => match rest.next().unwrap() {
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                'b' => '\u{8}',
                'f' => '\u{c}',
                'u' => {
                    let digits: String = rest.by_ref().take(4).collect();
                    units.push(u16::from_str_radix(&digits, 16).unwrap());
                    continue;
                }
                other => other,
            },
            other => other,
        };
        units.extend_from_slice(plain.encode_utf16(&mut [0; 2]));
    }
    String::from_utf16(&units).unwrap()
}

/// Dense, greedy, without an end token.
pub fn dense(tokens: i32) -> GenerateOptions {
    GenerateOptions { max_new_tokens: Some(tokens), schedule: Some("dense".into()), end_tokens: Some(Vec::new()), ..Default::default() }
}

pub fn generate(session: &mut Session, tokens: i32) -> Result<Vec<i32>, Error> {
    session.generate(&cases()[0].prompt, &dense(tokens))?.map(|token| Ok(token?.token)).collect()
}
