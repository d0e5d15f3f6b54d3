//! Conversations and their tokens.

use std::path::Path;
use std::slice;
use std::sync::{Arc, Weak};

use crate::error::{c_path, c_string, check, filled, pointer, string, told, Error};
use crate::ffi;
use crate::handle::Handle;
use crate::options::GenerateOptions;
use crate::schedule::{unwound, Schedule};

/// State of a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// More tokens follow.
    None,
    /// End token or stop string.
    Stop,
    /// The number of tokens that was asked for, or a full context.
    Length,
}

fn finish(raw: ffi::sol_finish) -> Finish {
    match raw {
        ffi::SOL_FINISH_NONE => Finish::None,
        ffi::SOL_FINISH_STOP => Finish::Stop,
        _ => Finish::Length,
    }
}

/// One generated token.
#[derive(Clone, Debug)]
pub struct Token {
    /// Its id.
    pub token: i32,
    /// Text that is now certain; empty while a character or a stop string is incomplete.
    pub text: String,
    /// Tag of the action that computed it; for the first token that of the prompt's run.
    pub action: String,
    /// Nats, under the raw distribution.
    pub logprob: f64,
    /// Of its decode step, in the cost model's unit; 0 for the first token.
    pub cost: f64,
    /// The same in dense steps.
    pub relative_cost: f64,
    /// Cost of the steps so far over their dense cost.
    pub achieved_budget: f64,
    /// Budget asked for, for the steps so far.
    pub requested_budget: f64,
    /// Since the token before; for the first token, since the start.
    pub milliseconds: f64,
    /// State of the generation.
    pub finish: Finish,
    /// The likeliest tokens and their log-probabilities.
    pub top_logprobs: Vec<(i32, f64)>,
}

/// Result of a generation so far.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct GenerationResult {
    pub tokens: usize,
    pub prompt_tokens: usize,
    pub cached_tokens: usize,
    pub schedule: String,
    pub cost_model: String,
    pub requested_budget: f64,
    pub achieved_budget: f64,
    /// Mean measured loss of the actions taken, nats a token; NaN if not measured.
    pub expected_loss: f64,
    pub prompt_tokens_per_second: f64,
    pub tokens_per_second: f64,
    pub time_to_first_token_ms: f64,
    /// Of the cheapest action at the last context; NaN if costs are bytes.
    pub fastest_tokens_per_second: f64,
    /// True if the budget lay below the cheapest action.
    pub floored: bool,
    /// In a replay, index of the first token that differs from the trace's.
    pub first_difference: Option<usize>,
    pub finish: Finish,
    /// Tokens that were guessed and run.
    pub drafted_tokens: usize,
    /// Of these, tokens of the text.
    pub accepted_tokens: usize,
}

/// Results of a run of tokens, of the last one.
#[derive(Clone, Debug)]
pub struct Output {
    /// A number for each token of the vocabulary.
    pub logits: Vec<f32>,
    /// Output of the final norm.
    pub hidden: Vec<f32>,
}

/// Log-probabilities of tokens that were given, and the decode steps that processed them.
#[derive(Clone, Debug)]
pub struct Scores {
    /// Of each token that was scored, in nats.
    pub logprobs: Vec<f64>,
    /// Tag of each decode step: one less than there are tokens, for the last one is only scored.
    pub actions: Vec<String>,
    /// Cost of each step, in the cost model's unit.
    pub costs: Vec<f64>,
    /// The schedule that ran.
    pub schedule: String,
    /// Cost of the steps over their dense cost.
    pub achieved_budget: f64,
    /// Budget asked for.
    pub requested_budget: f64,
    /// Mean measured loss of the actions taken, nats a token; NaN if not measured.
    pub expected_loss: f64,
    /// True if the budget lay below the cheapest action.
    pub floored: bool,
}

/// One conversation with its KV cache.
#[derive(Debug)]
pub struct Session {
    handle: Arc<Handle<ffi::sol_session>>,
    vocab_size: usize,
    hidden_size: usize,
    // Reading methods take `&self`, and the core lets one thread at a time read.
    _not_sync: std::marker::PhantomData<std::cell::Cell<()>>,
}

impl Session {
    pub(crate) fn new(handle: Handle<ffi::sol_session>, vocab_size: usize, hidden_size: usize) -> Self {
        Session { handle: Arc::new(handle), vocab_size, hidden_size, _not_sync: std::marker::PhantomData }
    }

    fn raw(&self) -> *mut ffi::sol_session {
        self.handle.raw()
    }

    /// Checks everything and begins; the prompt runs when the first token is taken. Dropping the iterator ends the generation; the cache keeps what was run.
    pub fn generate(&mut self, prompt: &[i32], options: &GenerateOptions) -> Result<Tokens<'_>, Error> {
        // SAFETY: prompt and options outlive the call.
        options.with_raw(|raw| check(unsafe { ffi::sol_session_start(self.raw(), prompt.as_ptr(), prompt.len(), raw) }))?;
        Ok(Tokens { session: self, _choose: options.choose.clone(), over: false })
    }

    /// Appends tokens to the cache, under the action of a tag, or `None` for the dense one. One token is a decode step; several run as a prompt does.
    /// Ends a running generation.
    pub fn forward(&mut self, tokens: &[i32], action: Option<&str>) -> Result<Output, Error> {
        let action = action.map(c_string).transpose()?;
        let mut made = Output { logits: vec![0.0; self.vocab_size], hidden: vec![0.0; self.hidden_size] };
        let rows = ffi::sol_rows {
            size: std::mem::size_of::<ffi::sol_rows>() as u32,
            num_logits: 1,
            logits: made.logits.as_mut_ptr(),
            logits_length: made.logits.len(),
            hidden: made.hidden.as_mut_ptr(),
            hidden_length: made.hidden.len(),
        };
        // SAFETY: tokens, the string and the buffers outlive the call.
        check(unsafe { ffi::sol_session_forward(self.raw(), tokens.as_ptr(), tokens.len(), pointer(&action), &rows, std::ptr::null_mut()) })?;
        Ok(made)
    }

    /// Runs the first `context` tokens as a prompt on an empty cache, then scores each later token and processes it as a decode step. Of the options the
    /// dial, the schedule and the seed count; without a dial it is a budget of 1. Ends a running generation.
    pub fn score(&mut self, tokens: &[i32], context: usize, options: &GenerateOptions) -> Result<Scores, Error> {
        let mut logprobs = vec![0.0; tokens.len().saturating_sub(context)];
        // SAFETY: all zero is a valid value of the struct; its pointers are valid until the session's next call, and all are copied here.
        unwound(options.with_raw(|options| unsafe {
            let raw: ffi::sol_scores = told(|raw: *mut ffi::sol_scores| {
                (*raw).logprobs = logprobs.as_mut_ptr();
                (*raw).logprobs_length = logprobs.len();
                ffi::sol_session_score(self.raw(), tokens.as_ptr(), tokens.len(), context, options, raw)
            })?;
            Ok(Scores {
                actions: (0..raw.num_actions).map(|index| string(*raw.actions.add(index))).collect(),
                costs: (0..raw.num_actions).map(|index| *raw.costs.add(index)).collect(),
                schedule: string(raw.schedule),
                achieved_budget: raw.achieved_budget,
                requested_budget: raw.requested_budget,
                expected_loss: raw.expected_loss,
                floored: raw.floored != 0,
                logprobs,
            })
        }))
    }

    /// Control of this session for other threads, at any time.
    pub fn control(&self) -> Control {
        Control(Arc::downgrade(&self.handle))
    }

    /// Result of the running or last generation so far.
    pub fn result(&self) -> Result<GenerationResult, Error> {
        // SAFETY: all zero is a valid value of the struct; its strings live until the session's next call.
        unsafe {
            let raw = told(|raw| ffi::sol_session_result(self.raw(), raw))?;
            Ok(GenerationResult {
                tokens: raw.num_tokens as usize,
                prompt_tokens: raw.prompt_tokens as usize,
                cached_tokens: raw.cached_tokens as usize,
                schedule: string(raw.schedule),
                cost_model: string(raw.cost_model),
                requested_budget: raw.requested_budget,
                achieved_budget: raw.achieved_budget,
                expected_loss: raw.expected_loss,
                prompt_tokens_per_second: raw.prompt_tokens_per_second,
                tokens_per_second: raw.tokens_per_second,
                time_to_first_token_ms: raw.time_to_first_token_ms,
                fastest_tokens_per_second: raw.fastest_tokens_per_second,
                floored: raw.floored != 0,
                first_difference: usize::try_from(raw.first_difference).ok(),
                finish: finish(raw.finish),
                drafted_tokens: raw.drafted_tokens as usize,
                accepted_tokens: raw.accepted_tokens as usize,
            })
        }
    }

    /// Tokens in the KV cache.
    pub fn tokens(&self) -> Result<Vec<i32>, Error> {
        // SAFETY: `filled` gives room for `capacity` tokens.
        filled(|room, capacity, count| unsafe { ffi::sol_session_tokens(self.raw(), room, capacity, count) })
    }

    /// Keeps the first `length` tokens of the cache.
    pub fn rewind(&mut self, length: usize) -> Result<(), Error> {
        // SAFETY: the handle is valid.
        check(unsafe { ffi::sol_session_rewind(self.raw(), length) })
    }

    /// Writes tokens and cache to a file, as a whole or not at all.
    pub fn save(&mut self, file: impl AsRef<Path>) -> Result<(), Error> {
        let file = c_path(file.as_ref())?;
        // SAFETY: the string outlives the call.
        check(unsafe { ffi::sol_session_save(self.raw(), file.as_ptr()) })
    }

    /// Reads what [`Session::save`] wrote, with the same bundle.
    pub fn restore(&mut self, file: impl AsRef<Path>) -> Result<(), Error> {
        let file = c_path(file.as_ref())?;
        // SAFETY: the string outlives the call.
        check(unsafe { ffi::sol_session_restore(self.raw(), file.as_ptr()) })
    }

    /// Bytes of memory that only this session uses: KV cache and buffers.
    pub fn private_bytes(&self) -> u64 {
        // SAFETY: the handle is valid.
        unsafe { ffi::sol_session_private_bytes(self.raw()) }
    }
}

/// The tokens of a running generation. After an error there are no more.
#[derive(Debug)]
pub struct Tokens<'a> {
    session: &'a mut Session,
    _choose: Option<Schedule>, // the core asks it
    over: bool,
}

impl Tokens<'_> {
    /// Control of the session for other threads at any time, and for this one between tokens.
    pub fn control(&self) -> Control {
        self.session.control()
    }
}

impl Iterator for Tokens<'_> {
    type Item = Result<Token, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        // SAFETY: all zero is a valid value of the struct; its pointers are valid until the session's next call, and all are copied here.
        unsafe {
            let raw: ffi::sol_token = match unwound(told(|raw| ffi::sol_session_next(self.session.raw(), raw))) {
                Ok(raw) => raw,
                Err(error) => {
                    self.over = true;
                    return Some(Err(error));
                }
            };
            self.over = raw.finish != 0;
            let text = if raw.text.is_null() { &[][..] } else { slice::from_raw_parts(raw.text.cast::<u8>(), raw.text_length) };
            let top = |index| (*raw.top_tokens.add(index), *raw.top_logprobs.add(index));
            Some(Ok(Token {
                token: raw.token,
                text: String::from_utf8_lossy(text).into_owned(),
                action: string(raw.action),
                logprob: raw.logprob,
                cost: raw.cost,
                relative_cost: raw.relative_cost,
                achieved_budget: raw.achieved_budget,
                requested_budget: raw.requested_budget,
                milliseconds: raw.milliseconds,
                finish: finish(raw.finish),
                top_logprobs: (0..raw.num_top).map(top).collect(),
            }))
        }
    }
}

impl Drop for Tokens<'_> {
    fn drop(&mut self) {
        // Also after the last token: a cancel that came too late for it is not meant for the next generation.
        // SAFETY: the handle is valid. An error here has nobody to go to: the generation is over in any case.
        let _ = check(unsafe { ffi::sol_session_stop(self.session.raw()) });
    }
}

/// Control of a session for any thread at any time. It does not keep the session alive.
#[derive(Clone, Debug)]
pub struct Control(Weak<Handle<ffi::sol_session>>);

impl Control {
    /// The call that is running, or the next one, ends with [`Code::Cancelled`](crate::Code::Cancelled) within one decode step.
    pub fn cancel(&self) {
        if let Some(session) = self.0.upgrade() {
            // SAFETY: the handle is valid, and the core takes this call from any thread.
            unsafe { ffi::sol_session_cancel(session.raw()) }
        }
    }

    /// Holds from the next decode step on; 0 to 1. [`Code::Usage`](crate::Code::Usage) where no generation is running.
    pub fn set_budget(&self, budget: f64) -> Result<(), Error> {
        let session = self.session()?;
        // SAFETY: as in `cancel`.
        check(unsafe { ffi::sol_session_set_budget(session.raw(), budget) })
    }

    /// As [`Control::set_budget`], with a rate that needs measured costs.
    pub fn set_tokens_per_second(&self, rate: f64) -> Result<(), Error> {
        let session = self.session()?;
        // SAFETY: as in `cancel`.
        check(unsafe { ffi::sol_session_set_tokens_per_second(session.raw(), rate) })
    }

    /// True if a call runs or a generation is under way.
    pub fn is_busy(&self) -> bool {
        // SAFETY: as in `cancel`.
        self.0.upgrade().is_some_and(|session| unsafe { ffi::sol_session_busy(session.raw()) } != 0)
    }

    fn session(&self) -> Result<Arc<Handle<ffi::sol_session>>, Error> {
        self.0.upgrade().ok_or_else(|| Error::usage("the session of this Control is dropped: make another one"))
    }
}
