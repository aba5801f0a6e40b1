//! Attention by cuDNN's fused kernels, where cuDNN is there.
//!
//! [`graph`] says what is computed, `plan` makes cuDNN's descriptors of it and finds its engine,
//! `library` finds cuDNN. Plans are made once for each shape and kept. Which attention comes here,
//! and in which pieces, is decided by `launch::fused`. Not yet run on a GPU; that cuDNN 9.19 has
//! engines for these graphs is tested without one (`tests/cudnn`).

pub mod graph;
mod library;
mod plan;

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::c_void;
use std::ptr;

use super::driver::Queue;
use crate::device::{Cause, Failure, Result};
use crate::profile::cost::AttentionDirection;
use graph::{Graph, Shape};
use library::{Library, Raw};
use plan::{For, Plan};

/// cuDNN for a stream.
pub(super) struct Cudnn {
    library: &'static Library,
    handle: Raw,
    plans: RefCell<HashMap<Key, std::result::Result<Plan, String>>>,
}

/// What a plan depends on.
type Key = (AttentionDirection, Shape);

impl Cudnn {
    /// Opens the library for what is queued on a stream that outlives this.
    ///
    /// # Errors
    /// Why it cannot be used, for a person.
    pub fn new(queue: &Queue) -> std::result::Result<Cudnn, String> {
        let library = Library::open()?;
        let mut handle = ptr::null_mut();
        // SAFETY: the pointer is to a local; a context is current.
        library.check("cudnnCreate", unsafe { (library.create)(&mut handle) })?;
        let made = Cudnn {
            library,
            handle,
            plans: RefCell::default(),
        };
        // SAFETY: both handles are alive.
        let status = unsafe { (library.set_stream)(handle, queue.raw()) };
        library.check("cudnnSetStream", status)?;
        Ok(made)
    }

    /// What it calls itself.
    pub fn name(&self) -> String {
        format!("cuDNN {}", self.library.version())
    }

    /// Makes the plan of an attention that has `workspace` bytes, unless it was made before.
    ///
    /// # Errors
    /// Why cuDNN does not serve it, the same every time.
    pub fn prepare(&self, key: Key, workspace: u64) -> std::result::Result<(), String> {
        let mut plans = self.plans.borrow_mut();
        let plan = plans.entry(key).or_insert_with(|| {
            let (direction, shape) = key;
            let plan = Plan::new(
                self.library,
                For::Handle(self.handle),
                &of(direction, &shape),
            );
            plan.map_err(|said| format!("{} has no plan for it: {said}", self.name()))
        });
        match plan {
            Err(said) => Err(said.clone()),
            Ok(plan) if plan.workspace > workspace => Err(format!(
                "{} asks for {} bytes of scratch memory, {workspace} are planned",
                self.name(),
                plan.workspace
            )),
            Ok(_) => Ok(()),
        }
    }

    /// Queues an attention that has been prepared with this workspace.
    ///
    /// # Errors
    /// What the library says.
    ///
    /// # Safety
    /// All tensors in memory are there, by their ids, as long and as aligned as the graph has them;
    /// they and the workspace lie within allocations that outlive the queued work.
    pub unsafe fn attend(&self, key: Key, tensors: Vec<(i64, u64)>, workspace: u64) -> Result<()> {
        let plans = self.plans.borrow();
        let Some(Ok(plan)) = plans.get(&key) else {
            return Err(Failure::refused("attention that was not prepared"));
        };
        let scale = 1.0 / (key.1.head_dim as f64).sqrt();
        let values = [scale as f32, f32::NEG_INFINITY, 1.0];
        // The forward has no 1, the library takes no more than a graph's.
        let ids = match key.0 {
            AttentionDirection::Forward => &[graph::SCALE, graph::HIDDEN][..],
            AttentionDirection::Backward => &[graph::SCALE, graph::HIDDEN, graph::ONE],
        };
        let values = ids.iter().zip(&values);
        let values = values.map(|(&id, value)| (id, ptr::from_ref(value).cast_mut().cast()));
        let tensors = tensors
            .into_iter()
            .map(|(id, address)| (id, address as *mut c_void));
        let all: Vec<(i64, *mut c_void)> = tensors.chain(values).collect();
        let queued = plan.execute(self.handle, &all, workspace as *mut c_void);
        queued.map_err(|said| Failure::new(Cause::Failed(format!("{}: {said}", self.name()))))
    }
}

impl Drop for Cudnn {
    fn drop(&mut self) {
        self.plans.borrow_mut().clear();
        // SAFETY: the handle is used nowhere else; the device waits for its streams first.
        let _ = unsafe { (self.library.destroy)(self.handle) };
    }
}

fn of(direction: AttentionDirection, shape: &Shape) -> Graph {
    match direction {
        AttentionDirection::Forward => Graph::forward(shape),
        AttentionDirection::Backward => Graph::backward(shape),
    }
}

/// What cuDNN says of a graph on a device that is not there: how many engines it proposes, and the
/// workspace of the first that makes a plan.
///
/// # Errors
/// A library that is not there, or what it says.
pub fn planned_for(
    properties: &str,
    direction: AttentionDirection,
    shape: &Shape,
) -> std::result::Result<(usize, u64), String> {
    let place = For::Properties(properties);
    let plan = Plan::new(Library::open()?, place, &of(direction, shape))?;
    Ok((plan.proposed, plan.workspace))
}

/// Whether cuDNN is there and which, without a device.
///
/// # Errors
/// Why it cannot be used.
pub fn version() -> std::result::Result<String, String> {
    Ok(Library::open()?.version())
}
