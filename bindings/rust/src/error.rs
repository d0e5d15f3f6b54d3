//! Errors, and what crosses the C interface as strings and arrays.

use std::ffi::{c_char, CStr, CString};
use std::fmt;
use std::mem::{size_of, MaybeUninit};
use std::path::Path;

use crate::ffi;

/// Kind of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Code {
    /// The call is wrong: a value out of range, or options that contradict each other.
    Usage,
    /// The bundle is missing, truncated, foreign or inconsistent.
    Bundle,
    /// ONNX Runtime is missing, too old, or failed.
    Runtime,
    /// Prompt or text does not fit the context, or the KV cache does not fit the memory.
    Context,
    /// The model gave numbers that are not finite.
    Numeric,
    /// Another thread is using the session.
    Busy,
    /// [`Control::cancel`](crate::Control::cancel) ended the call.
    Cancelled,
    /// A file cannot be written; what was there stays as it was.
    Write,
    /// Out of memory.
    Memory,
    /// The text is not valid, or the bundle has no tokenizer or no chat segments that the core can use.
    Text,
    /// A callback asked to stop.
    Host,
    /// A fault of the core.
    Internal,
}

/// By the core's number of them, where 0 is none.
const CODES: [Code; 12] = {
    use Code::*;
    [Internal, Usage, Bundle, Runtime, Context, Numeric, Busy, Cancelled, Write, Memory, Text, Host]
};

/// An error of the core: one line that says what, where, got, expected, and the next step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    code: Code,
    message: String,
}

impl Error {
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Error { code: Code::Usage, message: message.into() }
    }

    /// Kind of the error.
    pub fn code(&self) -> Code {
        self.code
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// Takes an error of the core, and frees it.
pub(crate) fn check(error: *mut ffi::sol_error) -> Result<(), Error> {
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: the core gave this error, and nothing uses it afterwards.
    let (code, message) = unsafe {
        let taken = (ffi::sol_error_code(error), string(ffi::sol_error_message(error)));
        ffi::sol_error_release(error);
        taken
    };
    Err(Error { code: *CODES.get(code as usize).unwrap_or(&Code::Internal), message })
}

/// A struct that a function of the core fills with its defaults.
pub(crate) fn defaults<T>(init: unsafe extern "C" fn(*mut T, u32)) -> T {
    let mut raw = MaybeUninit::uninit();
    // SAFETY: the core's functions of this kind fill the whole struct.
    unsafe {
        init(raw.as_mut_ptr(), size_of::<T>() as u32);
        raw.assume_init()
    }
}

/// A struct that `fill` writes into, which begins with its own size.
///
/// # Safety
/// All zero is a valid value of `T`, and its first field is a `u32`.
pub(crate) unsafe fn told<T>(fill: impl FnOnce(*mut T) -> *mut ffi::sol_error) -> Result<T, Error> {
    let mut raw = MaybeUninit::<T>::zeroed();
    raw.as_mut_ptr().cast::<u32>().write(size_of::<T>() as u32);
    check(fill(raw.as_mut_ptr()))?;
    Ok(raw.assume_init())
}

/// A copy of a string of the core; "" for NULL.
///
/// # Safety
/// `text` is NULL or ends in NUL.
pub(crate) unsafe fn string(text: *const c_char) -> String {
    if text.is_null() {
        String::new()
    } else {
        CStr::from_ptr(text).to_string_lossy().into_owned()
    }
}

pub(crate) fn c_string(text: &str) -> Result<CString, Error> {
    CString::new(text).map_err(|_| Error::usage(format!("the string {text:?} contains NUL: remove it")))
}

pub(crate) fn c_path(path: &Path) -> Result<CString, Error> {
    c_string(path.to_str().ok_or_else(|| Error::usage(format!("the path {} is not UTF-8: rename it", path.display())))?)
}

/// NULL for none. The pointer is valid as long as `text`.
pub(crate) fn pointer(text: &Option<CString>) -> *const c_char {
    text.as_ref().map_or(std::ptr::null(), |text| text.as_ptr())
}

/// Calls `fill(room, capacity, count)`, once more with more room where the result does not fit, and returns the result.
pub(crate) fn filled<T: Copy + Default>(mut fill: impl FnMut(*mut T, usize, *mut usize) -> *mut ffi::sol_error) -> Result<Vec<T>, Error> {
    let mut room = vec![T::default(); 512];
    let mut count = 0;
    check(fill(room.as_mut_ptr(), room.len(), &mut count))?;
    if count > room.len() {
        room.resize(count, T::default());
        check(fill(room.as_mut_ptr(), room.len(), &mut count))?;
    }
    room.truncate(count);
    Ok(room)
}
