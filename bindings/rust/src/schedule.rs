//! Schedules of the host's.

use std::any::Any;
use std::cell::Cell;
use std::ffi::{c_void, CStr};
use std::fmt;
use std::panic::{catch_unwind, resume_unwind, AssertUnwindSafe};
use std::slice;
use std::sync::Arc;

use crate::error::Error;
use crate::ffi;

/// Facts that a schedule gets before a decode step.
#[derive(Debug)]
pub struct Choice<'a> {
    /// The token that the step is to process.
    pub token: i32,
    /// Decode steps before this one.
    pub step: usize,
    /// Tokens in the cache.
    pub context: usize,
    /// Tags of the actions.
    pub actions: Vec<&'a str>,
    /// Cost of each action at this context, in dense steps.
    pub relative_costs: &'a [f64],
    /// Marks actions that keep what was asked for; if none does, those that miss it least.
    pub allowed: Vec<bool>,
    /// Cost to aim for, in dense steps: makes up for earlier steps.
    pub target: f64,
    /// Cost that a step may have on average, in dense steps.
    pub allowance: f64,
    /// The budget that is held; `None` under a rate and targets on the axes.
    pub budget: Option<f64>,
    /// Cost of the steps so far over their dense cost.
    pub achieved_budget: f64,
    /// Output of the final norm in the step before.
    pub hidden: &'a [f32],
    /// Logits from which `token` was picked.
    pub logits: &'a [f32],
    /// Probability of the likeliest token.
    pub top_probability: f64,
    /// That probability minus the one of the second likeliest token.
    pub margin: f64,
    /// Nats.
    pub entropy: f64,
}

type Choose = dyn Fn(&Choice<'_>) -> usize + Send + Sync;

/// A function of the host's that picks the action of each decode step: an index of [`Choice::actions`], allowed or not. A panic in it comes out of the call
/// that asks it.
#[derive(Clone)]
pub struct Schedule(Arc<Box<Choose>>);

impl Schedule {
    /// A schedule of this function.
    pub fn new(choose: impl Fn(&Choice<'_>) -> usize + Send + Sync + 'static) -> Self {
        Schedule(Arc::new(Box::new(choose)))
    }

    /// The `choose_user` of `on_choose`, valid as long as a clone of this schedule.
    pub(crate) fn user(&self) -> *mut c_void {
        Arc::as_ptr(&self.0).cast_mut().cast()
    }
}

impl fmt::Debug for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Schedule")
    }
}

thread_local! {
    /// A panic of the schedule that this thread's call of the core asked.
    static PANIC: Cell<Option<Box<dyn Any + Send>>> = const { Cell::new(None) };
}

/// Goes on with a panic of the schedule, if that is what ended the call.
pub(crate) fn unwound<T>(result: Result<T, Error>) -> Result<T, Error> {
    if let Some(panic) = PANIC.take() {
        resume_unwind(panic);
    }
    result
}

/// # Safety
/// `user` is that of a [`Schedule`], and `choice` what the core gives.
pub(crate) unsafe extern "C" fn on_choose(user: *mut c_void, choice: *const ffi::sol_choice) -> i32 {
    let (choose, raw) = (&*user.cast::<Box<Choose>>(), &*choice);
    let answer = catch_unwind(AssertUnwindSafe(|| {
        choose(&Choice {
            token: raw.token,
            step: raw.step as usize,
            context: raw.context as usize,
            actions: (0..raw.num_actions).map(|index| CStr::from_ptr(*raw.actions.add(index)).to_str().unwrap_or_default()).collect(),
            relative_costs: slice::from_raw_parts(raw.relative_costs, raw.num_actions),
            allowed: (0..raw.num_actions).map(|index| *raw.allowed.add(index) != 0).collect(),
            target: raw.target,
            allowance: raw.allowance,
            budget: Some(raw.budget).filter(|budget| !budget.is_nan()),
            achieved_budget: raw.achieved_budget,
            hidden: slice::from_raw_parts(raw.hidden, raw.hidden_size),
            logits: slice::from_raw_parts(raw.logits, raw.vocab_size),
            top_probability: (*raw.distribution).top_probability,
            margin: (*raw.distribution).margin,
            entropy: (*raw.distribution).entropy,
        })
    }));
    answer.map(|index| i32::try_from(index).unwrap_or(i32::MAX)).unwrap_or_else(|panic| {
        PANIC.set(Some(panic));
        -1
    })
}
