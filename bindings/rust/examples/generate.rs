//! Text from a bundle:   cargo run --example generate -- ONNXRUNTIME_LIBRARY BUNDLE "a prompt" [BUDGET]

use std::io::Write;

use sol_rt::{Error, GenerateOptions, Model, Runtime};

fn main() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [library, bundle, prompt, rest @ ..] = arguments.as_slice() else {
        eprintln!("usage: generate ONNXRUNTIME_LIBRARY BUNDLE PROMPT [BUDGET]");
        std::process::exit(2);
    };
    let budget = rest.first().and_then(|word| word.parse().ok());
    let runtime = Runtime::open(library)?;
    let model = Model::load(&runtime, bundle)?;
    let mut session = model.session()?;
    let options = GenerateOptions { budget, max_new_tokens: Some(100), ..Default::default() };
    for token in session.generate(&model.encode(prompt, true, false)?, &options)? {
        print!("{}", token?.text);
        std::io::stdout().flush().ok();
    }
    let result = session.result()?;
    eprintln!("\n{} tokens, {:.1} a second, budget {:.2}", result.tokens, result.tokens_per_second, result.achieved_budget);
    Ok(())
}
