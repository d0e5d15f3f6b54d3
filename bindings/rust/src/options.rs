//! How to generate.

use std::ffi::{c_char, CString};
use std::path::PathBuf;

use crate::error::{c_path, c_string, defaults, pointer, Error};
use crate::ffi;
use crate::schedule::{on_choose, Schedule};

/// Options of a generation. `None` is the model's own default. At most one of `budget`, `tokens_per_second`, `max_loss` and the targets on the axes may be set;
/// with none, the fastest mix of actions runs that loses at most 0.5%.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct GenerateOptions {
    pub max_new_tokens: Option<i32>,
    /// True draws from the distribution; false takes the likeliest token.
    pub do_sample: Option<bool>,
    pub temperature: Option<f64>,
    pub top_k: Option<i32>,
    pub top_p: Option<f64>,
    pub min_p: Option<f64>,
    pub repetition_penalty: Option<f64>,
    pub presence_penalty: Option<f64>,
    pub frequency_penalty: Option<f64>,
    /// Of sampling and of the schedule `random`; `None` draws a fresh one.
    pub seed: Option<i64>,
    pub top_logprobs: Option<i32>,
    /// Tokens, and what is added to their scores: -100 to 100.
    pub logit_bias: Vec<(i32, f32)>,
    /// The text ends before the first of these. In place of the model's own.
    pub stop_strings: Option<Vec<String>>,
    /// In place of the model's own.
    pub end_tokens: Option<Vec<i32>>,
    /// Share of the dense cost, 0 to 1.
    pub budget: Option<f64>,
    /// Needs measured costs.
    pub tokens_per_second: Option<f64>,
    /// Share by which perplexity may rise, as 0.01.
    pub max_loss: Option<f64>,
    pub kv_density: Option<f64>,
    pub channel_density: Option<f64>,
    pub bits: Option<f64>,
    /// `sol`, `hull`, `uniform`, `entropy`, `random`, `fixed:TAG` or `dense`.
    pub schedule: Option<String>,
    /// A schedule of the host's; `schedule` is then the name under which it is reported.
    pub choose: Option<Schedule>,
    /// True keeps the tokens of the prompt that the cache begins with, false runs the whole prompt.
    pub reuse_cache: Option<bool>,
    /// True gives the text of budget 1, sooner where it repeats itself or the prompt: tokens are guessed, and several checked at once.
    pub lossless: bool,
    /// True guesses and checks tokens so under whatever the dial asks for.
    pub lookup: bool,
    /// File to write every step to, as `sol-rt trace` reads it.
    pub trace: Option<PathBuf>,
    /// A trace whose actions run again, in place of a dial.
    pub replay: Option<PathBuf>,
}

impl GenerateOptions {
    /// Calls `body` with these options in C, which are valid during that call.
    pub(crate) fn with_raw<T>(&self, body: impl FnOnce(&ffi::sol_generate_options) -> Result<T, Error>) -> Result<T, Error> {
        let biases: Vec<_> = self.logit_bias.iter().map(|&(token, bias)| ffi::sol_logit_bias { token, bias }).collect();
        let stops: Vec<CString> = self.stop_strings.iter().flatten().map(|text| c_string(text)).collect::<Result<_, _>>()?;
        let stop_pointers: Vec<*const c_char> = stops.iter().map(|text| text.as_ptr()).collect();
        let schedule = self.schedule.as_deref().map(c_string).transpose()?;
        let trace = self.trace.as_deref().map(c_path).transpose()?;
        let replay = self.replay.as_deref().map(c_path).transpose()?;
        let mut raw = defaults(ffi::sol_generate_options_init);
        let counts = [(&mut raw.max_new_tokens, self.max_new_tokens), (&mut raw.top_k, self.top_k), (&mut raw.top_logprobs, self.top_logprobs)];
        for (field, value) in counts {
            *field = value.unwrap_or(*field);
        }
        let numbers = [
            (&mut raw.temperature, self.temperature),
            (&mut raw.top_p, self.top_p),
            (&mut raw.min_p, self.min_p),
            (&mut raw.repetition_penalty, self.repetition_penalty),
            (&mut raw.presence_penalty, self.presence_penalty),
            (&mut raw.frequency_penalty, self.frequency_penalty),
            (&mut raw.budget, self.budget),
            (&mut raw.tokens_per_second, self.tokens_per_second),
            (&mut raw.max_loss, self.max_loss),
            (&mut raw.kv_density, self.kv_density),
            (&mut raw.channel_density, self.channel_density),
            (&mut raw.bits, self.bits),
        ];
        for (field, value) in numbers {
            *field = value.unwrap_or(*field);
        }
        raw.do_sample = self.do_sample.map_or(raw.do_sample, i32::from);
        raw.seed = self.seed.unwrap_or(raw.seed);
        raw.reuse_cache = self.reuse_cache.map_or(raw.reuse_cache, i32::from);
        raw.lossless = i32::from(self.lossless);
        raw.lookup = i32::from(self.lookup);
        // The pointer of an empty list is not NULL, so it would replace the model's own, or those of the trace that is replayed.
        if !biases.is_empty() {
            raw.logit_bias = biases.as_ptr();
            raw.num_logit_bias = biases.len();
        }
        if self.stop_strings.is_some() {
            raw.stop_strings = stop_pointers.as_ptr();
            raw.num_stop_strings = stop_pointers.len();
        }
        if let Some(tokens) = &self.end_tokens {
            raw.end_tokens = tokens.as_ptr(); // not NULL, even where there are none
            raw.num_end_tokens = tokens.len();
        }
        raw.schedule = pointer(&schedule);
        if let Some(choose) = &self.choose {
            raw.choose = Some(on_choose);
            raw.choose_user = choose.user();
        }
        raw.trace = pointer(&trace);
        raw.replay = pointer(&replay);
        body(&raw)
    }
}
