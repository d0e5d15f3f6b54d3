//! Self-optimizing language models inside a Rust program, over the native core's C interface.
//!
//! A [`Model`] is a loaded bundle, a [`Session`] one conversation on it, and [`Session::generate`] an iterator of tokens. Before every decode step the core
//! picks how much to compute, so that the budget is held; a [`Control`] moves the budget, or cancels, from any thread.
//!
//! ```no_run
//! use sol_rt::{GenerateOptions, Model, Runtime};
//!
//! # fn main() -> Result<(), sol_rt::Error> {
//! let runtime = Runtime::open("libonnxruntime.so")?;
//! let model = Model::load(&runtime, "bundles/smollm2-135m")?;
//! let mut session = model.session()?;
//! let prompt = model.encode("Once upon a time", true, false)?;
//! let options = GenerateOptions { budget: Some(0.6), max_new_tokens: Some(100), ..Default::default() };
//! for token in session.generate(&prompt, &options)? {
//!     print!("{}", token?.text);
//! }
//! println!("\n{:.2}", session.result()?.achieved_budget);
//! # Ok(())
//! # }
//! ```
//!
//! Threads: [`Runtime`], [`Model`] and [`Control`] are `Send` and `Sync`; a [`Session`] is `Send`, and its methods that run take `&mut self`.
#![warn(missing_docs)]

mod error;
mod ffi;
mod governor;
mod handle;
mod model;
mod options;
mod schedule;
mod session;

pub use error::{Code, Error};
pub use governor::{Governor, Reading};
pub use model::{Action, Costs, Model, ModelInfo, ModelOptions, Progress, Runtime, RuntimeOptions, Verify};
pub use options::GenerateOptions;
pub use schedule::{Choice, Schedule};
pub use session::{Control, Finish, GenerationResult, Output, Scores, Session, Token, Tokens};

/// Version of the core that is linked, as "0.1.0".
pub fn version() -> String {
    // SAFETY: the function returns a string that lives as long as the library.
    unsafe { error::string(ffi::sol_version()) }
}
