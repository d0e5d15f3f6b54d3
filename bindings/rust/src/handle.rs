//! What the core gives a pointer to, and takes back.

use std::ptr::{null_mut, NonNull};

use crate::error::{check, Error};
use crate::ffi;

/// One reference to a runtime, a model or a session.
#[derive(Debug)]
pub(crate) struct Handle<T> {
    pointer: NonNull<T>,
    release: unsafe extern "C" fn(*mut T),
}

// SAFETY: the core lets any number of threads use a runtime and a model. A `Session` runs one call at a time, since its methods take `&mut self` and it is
// not `Sync`; the calls that `Control` makes may come from any thread.
unsafe impl<T> Send for Handle<T> {}
unsafe impl<T> Sync for Handle<T> {}

impl<T> Handle<T> {
    /// Takes over the object that `create` makes, which `release` is to free.
    pub(crate) fn new(release: unsafe extern "C" fn(*mut T), create: impl FnOnce(*mut *mut T) -> *mut ffi::sol_error) -> Result<Self, Error> {
        let mut made = null_mut();
        check(create(&mut made))?;
        Ok(Handle { pointer: NonNull::new(made).expect("without an error there is a pointer"), release })
    }

    pub(crate) fn raw(&self) -> *mut T {
        self.pointer.as_ptr()
    }
}

impl<T> Drop for Handle<T> {
    fn drop(&mut self) {
        // SAFETY: the pointer is this handle's own; what was made from it counts a reference of its own.
        unsafe { (self.release)(self.raw()) }
    }
}
