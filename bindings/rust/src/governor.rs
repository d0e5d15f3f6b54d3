//! From the device's state to a budget.

use crate::error::{check, defaults, told, Error};
use crate::ffi;

/// The device's state; `None` stands for unknown.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reading {
    /// Level, 0 to 1.
    pub battery: Option<f64>,
    /// True if the device is charging.
    pub charging: Option<bool>,
    /// 0 is cool; at 1 the system begins to throttle.
    pub thermal: Option<f64>,
    /// Measured rate.
    pub tokens_per_second: Option<f64>,
}

/// Moves a budget between two bounds. Step it every second or every few tokens, and hand its budget to [`Control::set_budget`](crate::Control::set_budget).
pub struct Governor {
    settings: ffi::sol_governor_settings,
    state: ffi::sol_governor_state,
}

impl Governor {
    /// `tokens_per_second` is the wanted rate, if any.
    pub fn new(lowest_budget: f64, highest_budget: f64, tokens_per_second: Option<f64>) -> Result<Self, Error> {
        let mut settings = defaults(ffi::sol_governor_settings_init);
        settings.lowest_budget = lowest_budget;
        settings.highest_budget = highest_budget;
        settings.tokens_per_second = tokens_per_second.unwrap_or(f64::NAN);
        // SAFETY: all zero is a valid state; both structs outlive the call.
        let state = unsafe { told(|state| ffi::sol_governor_begin(&settings, state)) }?;
        Ok(Governor { settings, state })
    }

    /// The budget after the last reading.
    pub fn budget(&self) -> f64 {
        self.state.budget
    }

    /// The budget after this reading.
    pub fn step(&mut self, reading: Reading) -> Result<f64, Error> {
        let mut raw = defaults(ffi::sol_governor_reading_init);
        raw.battery = reading.battery.unwrap_or(f64::NAN);
        raw.charging = reading.charging.map_or(-1, i32::from);
        raw.thermal = reading.thermal.unwrap_or(f64::NAN);
        raw.tokens_per_second = reading.tokens_per_second.unwrap_or(f64::NAN);
        // SAFETY: all structs outlive the call.
        check(unsafe { ffi::sol_governor_step(&self.settings, &raw, &mut self.state) })?;
        Ok(self.state.budget)
    }
}
