//! An answer from a bundle:   cargo run --example generate -- ONNXRUNTIME_LIBRARY BUNDLE "a question" [BUDGET]

use std::io::Write;

use sol_rt::{Error, GenerateOptions, Model, Runtime};

fn main() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [library, bundle, question, rest @ ..] = arguments.as_slice() else {
        eprintln!("usage: generate ONNXRUNTIME_LIBRARY BUNDLE QUESTION [BUDGET]");
        std::process::exit(2);
    };
    let budget = rest.first().and_then(|word| word.parse().ok());
    let runtime = Runtime::open(library)?;
    let model = Model::load(&runtime, bundle)?;
    let mut session = model.session()?;
    let options = GenerateOptions { budget, max_new_tokens: Some(100), ..Default::default() };
    // A bundle whose template the core cannot render goes on with the question as plain text.
    let prompt = if model.info()?.has_chat { model.encode_chat(&[("user", question)])? } else { model.encode(question, true, false)? };
    for token in session.generate(&prompt, &options)? {
        print!("{}", token?.text);
        std::io::stdout().flush().ok();
    }
    let result = session.result()?;
    eprintln!("\n{} tokens, {:.1} a second, budget {:.2}", result.tokens, result.tokens_per_second, result.achieved_budget);
    Ok(())
}
