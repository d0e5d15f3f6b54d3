//! ONNX Runtime, and bundles.

use std::any::Any;
use std::ffi::{c_char, c_void, CString};
use std::panic::{catch_unwind, resume_unwind, AssertUnwindSafe};
use std::path::Path;

use crate::error::{c_path, c_string, check, defaults, filled, pointer, string, told, Error};
use crate::ffi;
use crate::handle::Handle;
use crate::session::Session;

/// Options of opening ONNX Runtime.
#[derive(Clone, Debug)]
pub struct RuntimeOptions {
    /// Path or name of ONNX Runtime's shared library; `None` for the system's usual name.
    pub ort_library: Option<String>,
    /// Threads of ONNX Runtime's pool; 0 for as many as help.
    pub threads: u16,
    /// False: runs the function bodies in the graphs, not the native operators.
    pub native_operators: bool,
    /// True: waiting threads spin, as is ONNX Runtime's default. False lets them sleep, which saves battery.
    pub spin: bool,
}

impl Default for RuntimeOptions {
    fn default() -> Self {
        RuntimeOptions { ort_library: None, threads: 0, native_operators: true, spin: true }
    }
}

/// ONNX Runtime as the program ships it. One for the whole program is enough.
#[derive(Debug)]
pub struct Runtime(Handle<ffi::sol_runtime>);

impl Runtime {
    /// Opens ONNX Runtime's library at a path, or under a name that the system finds.
    pub fn open(ort_library: &str) -> Result<Self, Error> {
        Self::with_options(&RuntimeOptions { ort_library: Some(ort_library.to_owned()), ..Default::default() })
    }

    /// [`Code::Runtime`](crate::Code::Runtime) where ONNX Runtime is missing or too old.
    pub fn with_options(options: &RuntimeOptions) -> Result<Self, Error> {
        let library = options.ort_library.as_deref().map(c_string).transpose()?;
        let mut raw = defaults(ffi::sol_runtime_options_init);
        raw.ort_library = pointer(&library);
        raw.threads = options.threads.into();
        raw.native_operators = options.native_operators.into();
        raw.spin = options.spin.into();
        // SAFETY: the strings outlive the call.
        Handle::new(ffi::sol_runtime_release, |runtime| unsafe { ffi::sol_runtime_create(&raw, runtime) }).map(Runtime)
    }

    /// Version of ONNX Runtime, as "1.23.0".
    pub fn ort_version(&self) -> String {
        // SAFETY: the handle is valid.
        unsafe { string(ffi::sol_runtime_ort_version(self.0.raw())) }
    }
}

/// Files that are compared with their hashes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verify {
    /// None.
    None,
    /// All but the weights.
    #[default]
    Small,
    /// All: about a second a gigabyte.
    All,
}

/// Costs that a budget is a share of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Costs {
    /// As the environment's `SOL_RT_COSTS` says; measured where it says nothing.
    #[default]
    Default,
    /// Bytes that a step reads.
    Bytes,
    /// Milliseconds where `sol-rt profile` measured the bundle on this device, else bytes.
    Profiled,
    /// Milliseconds. The first load of a bundle measures them, in 2 to 6 s, and keeps them.
    Measured,
}

/// Called with what is being done, how much of it is done, and of how much. False ends the call with [`Code::Host`](crate::Code::Host).
pub type Progress<'a> = dyn FnMut(&str, u64, u64) -> bool + 'a;

/// Options of loading a bundle.
#[derive(Default)]
pub struct ModelOptions<'a> {
    /// Files that are compared with their hashes.
    pub verify: Verify,
    /// A cap in tokens below the model's own; 0 for none.
    pub max_context: i32,
    /// A cost table that was measured on this device; `None`: as `costs` says.
    pub cost_table: Option<&'a Path>,
    /// Costs that a budget is a share of.
    pub costs: Costs,
    /// Folder in which measured costs are kept; `None` for one of the user's.
    pub costs_folder: Option<&'a Path>,
    /// Key of the variant that runs prompts, as "s100-q4"; `None`: the dial chooses.
    pub prefill: Option<&'a str>,
    /// Called while the bundle loads. A panic in it comes out of the load.
    pub progress: Option<&'a mut Progress<'a>>,
}

/// Contents of a bundle.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct ModelInfo {
    pub name: String,
    pub generator: String,
    pub identity: String,
    pub default_schedule: String,
    pub cost_model: String,
    /// A line about costs of the load for the user, mostly empty.
    pub cost_note: String,
    pub dense: String,
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub layers: usize,
    pub max_context: usize,
    pub actions: usize,
    pub has_policy: bool,
    pub has_losses: bool,
    pub has_tokenizer: bool,
    pub has_chat: bool,
    pub native_operators: bool,
    /// Size of the weights file, which the system may drop from memory.
    pub mapped_bytes: u64,
}

/// One way to run a decode step.
#[derive(Clone, Debug)]
pub struct Action {
    /// As "k030-s050-q4".
    pub tag: String,
    /// Cost at a context of 512 tokens, in dense steps.
    pub relative_cost: f64,
    /// Nats a token over dense; `None` if not measured.
    pub loss: Option<f64>,
}

/// A loaded bundle. Its sessions share the weights' memory and may outlive it.
#[derive(Debug)]
pub struct Model(Handle<ffi::sol_model>);

impl Model {
    /// Loads a bundle. [`Code::Bundle`](crate::Code::Bundle) where the folder is none, or is damaged.
    pub fn load(runtime: &Runtime, folder: impl AsRef<Path>) -> Result<Self, Error> {
        Self::load_with(runtime, folder, ModelOptions::default())
    }

    /// Loads a bundle with options.
    pub fn load_with(runtime: &Runtime, folder: impl AsRef<Path>, options: ModelOptions<'_>) -> Result<Self, Error> {
        let folder = c_path(folder.as_ref())?;
        let table = options.cost_table.map(c_path).transpose()?;
        let costs_folder = options.costs_folder.map(c_path).transpose()?;
        let prefill = options.prefill.map(c_string).transpose()?;
        let mut raw = defaults(ffi::sol_model_options_init);
        raw.verify = options.verify as ffi::sol_verify;
        raw.max_context = options.max_context;
        raw.cost_table = pointer(&table);
        raw.costs = options.costs as ffi::sol_cost_source;
        raw.costs_folder = pointer(&costs_folder);
        raw.prefill = pointer(&prefill);
        let mut report = Report { progress: options.progress, panic: None };
        raw.progress = Some(on_progress);
        raw.user = (&mut report as *mut Report<'_>).cast();
        // SAFETY: strings and `report` outlive the call.
        let loaded = Handle::new(ffi::sol_model_release, |model| unsafe { ffi::sol_model_load(runtime.0.raw(), folder.as_ptr(), &raw, model) });
        if let Some(panic) = report.panic {
            resume_unwind(panic);
        }
        loaded.map(Model)
    }

    /// Contents of the bundle.
    pub fn info(&self) -> Result<ModelInfo, Error> {
        // SAFETY: all zero is a valid value of the struct; the strings that the core sets live as long as the model.
        unsafe {
            let raw = told(|raw| ffi::sol_model_get_info(self.0.raw(), raw))?;
            Ok(ModelInfo {
                name: string(raw.name),
                generator: string(raw.generator),
                identity: string(raw.identity),
                default_schedule: string(raw.default_schedule),
                cost_model: string(raw.cost_model),
                cost_note: string(raw.cost_note),
                dense: string(raw.dense),
                vocab_size: raw.vocab_size as usize,
                hidden_size: raw.hidden_size as usize,
                layers: raw.num_layers as usize,
                max_context: raw.max_context as usize,
                actions: raw.num_actions as usize,
                has_policy: raw.has_policy != 0,
                has_losses: raw.has_losses != 0,
                has_tokenizer: raw.has_tokenizer != 0,
                has_chat: raw.has_chat != 0,
                native_operators: raw.native != 0,
                mapped_bytes: raw.mapped_bytes,
            })
        }
    }

    /// The action set.
    pub fn actions(&self) -> Result<Vec<Action>, Error> {
        (0..self.info()?.actions)
            // SAFETY: as in `info`.
            .map(|index| unsafe {
                let raw = told(|raw| ffi::sol_model_get_action(self.0.raw(), index as i32, raw))?;
                Ok(Action { tag: string(raw.tag), relative_cost: raw.relative_cost, loss: Some(raw.loss).filter(|loss| !loss.is_nan()) })
            })
            .collect()
    }

    /// Tries settings of the operators, which then hold for the process, and times every action, for about four seconds.
    /// Uses the result from the next generation on, and writes it to `file`, if any.
    pub fn measure_costs(&self, file: Option<&Path>) -> Result<(), Error> {
        let file = file.map(c_path).transpose()?;
        // SAFETY: the handle is valid, and the string outlives the call.
        check(unsafe { ffi::sol_model_measure_costs(self.0.raw(), pointer(&file)) })
    }

    /// Takes costs from the text of a cost table, from the next generation on; `None` goes back to bytes. The table may be the host's own.
    pub fn set_costs(&self, table: Option<&str>) -> Result<(), Error> {
        let table = table.map(c_string).transpose()?;
        // SAFETY: the handle is valid, and the string outlives the call.
        check(unsafe { ffi::sol_model_set_costs(self.0.raw(), pointer(&table)) })
    }

    /// Tokens of a text. `add_special` adds what the model wants around it; with `parse_special`, special tokens written in it become those tokens.
    pub fn encode(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<i32>, Error> {
        let flag = |wanted: bool, flag| if wanted { flag } else { 0 };
        let flags = flag(add_special, ffi::SOL_ENCODE_ADD_SPECIAL) | flag(parse_special, ffi::SOL_ENCODE_PARSE_SPECIAL);
        // SAFETY: the text has a length beside it; `filled` gives room for `capacity` tokens.
        filled(|room, capacity, count| unsafe { ffi::sol_model_encode(self.0.raw(), text.as_ptr().cast::<c_char>(), text.len(), flags, room, capacity, count) })
    }

    /// Text of tokens. Bytes that are no character become U+FFFD.
    pub fn decode(&self, tokens: &[i32], skip_special: bool) -> Result<String, Error> {
        // SAFETY: as in `encode`.
        let bytes: Vec<u8> = filled(|room: *mut u8, capacity, count| unsafe {
            ffi::sol_model_decode(self.0.raw(), tokens.as_ptr(), tokens.len(), skip_special.into(), room.cast(), capacity, count)
        })?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Tokens of a conversation, given as (role, content), with the beginning of the assistant's answer.
    pub fn encode_chat(&self, messages: &[(&str, &str)]) -> Result<Vec<i32>, Error> {
        let texts: Vec<(CString, CString)> = messages.iter().map(|(role, content)| Ok((c_string(role)?, c_string(content)?))).collect::<Result<_, Error>>()?;
        let raw: Vec<_> = texts.iter().map(|(role, content)| ffi::sol_message { role: role.as_ptr(), content: content.as_ptr() }).collect();
        // SAFETY: as in `encode`; `texts` outlives the call.
        filled(|room, capacity, count| unsafe { ffi::sol_model_encode_chat(self.0.raw(), raw.as_ptr(), raw.len(), room, capacity, count) })
    }

    /// A session with a KV cache of its own.
    pub fn session(&self) -> Result<Session, Error> {
        let info = self.info()?;
        // SAFETY: the handle is valid.
        let handle = Handle::new(ffi::sol_session_release, |session| unsafe { ffi::sol_session_create(self.0.raw(), session) })?;
        Ok(Session::new(handle, info.vocab_size, info.hidden_size))
    }
}

struct Report<'a> {
    progress: Option<&'a mut Progress<'a>>,
    panic: Option<Box<dyn Any + Send>>,
}

/// No panic may cross the core: it is kept, and goes on in `load_with`.
unsafe extern "C" fn on_progress(user: *mut c_void, what: *const c_char, done: u64, total: u64) -> i32 {
    let report = &mut *user.cast::<Report<'_>>();
    let Some(progress) = report.progress.as_mut() else { return 0 };
    match catch_unwind(AssertUnwindSafe(|| progress(&string(what), done, total))) {
        Ok(go_on) => i32::from(!go_on),
        Err(panic) => {
            report.panic = Some(panic);
            1
        }
    }
}
