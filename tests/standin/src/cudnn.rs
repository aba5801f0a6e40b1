//! cuDNN: descriptors of graphs, whose operations `graph` computes. One engine serves every graph
//! whose tensors belong together.

use std::collections::BTreeMap;
use std::ffi::{c_char, c_void};
use std::sync::Arc;

use crate::faults::{call, injected, number};
use crate::graph::{Addresses, Graph, Kind, Operation, Tensor, BFLOAT16, BOOLEAN, FLOAT, INT32};
use crate::memory::{check, Side};
use crate::streams::Stream;

/// cuDNN's status codes that are given here.
const SUCCESS: u32 = 0;
const NOT_INITIALIZED: u32 = 1001;
const BAD_PARAM: u32 = 2000;
const NOT_SUPPORTED: u32 = 3000;
const EXECUTION_FAILED: u32 = 5000;

/// Floating-point operations of a nanosecond on a virtual clock.
const RATE: f64 = 400_000.0;

/// What a stream's calls go through.
pub struct Handle {
    stream: *const Stream,
}

/// A descriptor: its attributes, and what they come to once it is finalized.
pub struct Descriptor {
    kind: u32,
    /// Type and bytes of each attribute.
    attributes: BTreeMap<u32, (u32, Vec<u8>)>,
    made: Option<Made>,
}

#[derive(Clone)]
enum Made {
    Tensor(Tensor),
    /// How an operation computes.
    How(Kind),
    Operation(Operation),
    Graph(Arc<Graph>),
    Heuristic(Arc<Graph>),
    Engine(Arc<Graph>),
    Plan(Arc<Graph>),
    Pack(Addresses, u64),
}

#[no_mangle]
extern "C" fn cudnnGetVersion() -> usize {
    number("EBBTIDE_STANDIN_CUDNN", 91_900) as usize
}

#[no_mangle]
extern "C" fn cudnnGetCudartVersion() -> usize {
    13_000
}

#[no_mangle]
extern "C" fn cudnnGetErrorString(status: u32) -> *const c_char {
    match status {
        NOT_INITIALIZED => c"CUDNN_STATUS_NOT_INITIALIZED",
        BAD_PARAM => c"CUDNN_STATUS_BAD_PARAM",
        NOT_SUPPORTED => c"CUDNN_STATUS_NOT_SUPPORTED",
        EXECUTION_FAILED => c"CUDNN_STATUS_EXECUTION_FAILED",
        _ => c"CUDNN_STATUS_INTERNAL_ERROR",
    }
    .as_ptr()
}

#[no_mangle]
unsafe extern "C" fn cudnnGetLastErrorString(text: *mut c_char, bytes: usize) {
    let said = c"said by the stand-in".to_bytes_with_nul();
    text.copy_from_nonoverlapping(said.as_ptr().cast(), said.len().min(bytes));
}

#[no_mangle]
unsafe extern "C" fn cudnnCreate(handle: *mut *mut Handle) -> u32 {
    if call("cudnnCreate").is_err() {
        return NOT_INITIALIZED;
    }
    let stream = std::ptr::null();
    *handle = Box::into_raw(Box::new(Handle { stream }));
    SUCCESS
}

#[no_mangle]
unsafe extern "C" fn cudnnDestroy(handle: *mut Handle) -> u32 {
    drop(Box::from_raw(handle));
    SUCCESS
}

#[no_mangle]
unsafe extern "C" fn cudnnSetStream(handle: *mut Handle, stream: *const Stream) -> u32 {
    (*handle).stream = stream;
    SUCCESS
}

#[no_mangle]
unsafe extern "C" fn cudnnBackendCreateDescriptor(kind: u32, made: *mut *mut Descriptor) -> u32 {
    *made = Box::into_raw(Box::new(Descriptor {
        kind,
        attributes: BTreeMap::new(),
        made: None,
    }));
    SUCCESS
}

#[no_mangle]
unsafe extern "C" fn cudnnBackendDestroyDescriptor(descriptor: *mut Descriptor) -> u32 {
    drop(Box::from_raw(descriptor));
    SUCCESS
}

/// Bytes of a type of attributes: of choices one, of names and other enums four.
fn size(kind: u32) -> usize {
    match kind {
        2 => 1,
        0 | 3 | 6 | 15 => 8,
        _ => 4,
    }
}

#[no_mangle]
unsafe extern "C" fn cudnnBackendSetAttribute(
    descriptor: *mut Descriptor,
    name: u32,
    kind: u32,
    count: i64,
    values: *const u8,
) -> u32 {
    let descriptor = &mut *descriptor;
    if descriptor.made.is_some() || count < 1 {
        return BAD_PARAM;
    }
    let bytes = std::slice::from_raw_parts(values, count as usize * size(kind)).to_vec();
    descriptor.attributes.insert(name, (kind, bytes));
    SUCCESS
}

#[no_mangle]
unsafe extern "C" fn cudnnBackendFinalize(descriptor: *mut Descriptor) -> u32 {
    let descriptor = &mut *descriptor;
    let made = match descriptor.made {
        Some(_) => None,
        None => descriptor.made(),
    };
    match made {
        Some(made) => {
            descriptor.made = Some(made);
            SUCCESS
        }
        None => BAD_PARAM,
    }
}

#[no_mangle]
unsafe extern "C" fn cudnnBackendGetAttribute(
    descriptor: *const Descriptor,
    name: u32,
    kind: u32,
    room: i64,
    found: *mut i64,
    values: *mut c_void,
) -> u32 {
    match ((*descriptor).made.as_ref(), name, kind) {
        (Some(Made::Heuristic(graph)), 202, 15) => {
            *found = i64::from(injected("engine").is_ok());
            if room > 0 {
                let engine = *values.cast::<*mut Descriptor>();
                (*engine).made = Some(Made::Engine(Arc::clone(graph)));
            }
        }
        (Some(Made::Plan(graph)), 402, 3) if room > 0 => {
            *found = 1;
            *values.cast::<i64>() = graph.workspace() as i64;
        }
        _ => return NOT_SUPPORTED,
    }
    SUCCESS
}

impl Descriptor {
    /// The values of an attribute of a type.
    fn values<const N: usize>(&self, name: u32, kind: u32) -> Option<Vec<[u8; N]>> {
        let (found, bytes) = self.attributes.get(&name)?;
        let values = bytes.chunks_exact(N).map(|value| value.try_into().unwrap());
        (*found == kind && N == size(kind)).then(|| values.collect())
    }

    fn numbers(&self, name: u32) -> Option<Vec<i64>> {
        let values = self.values(name, 3)?;
        Some(values.into_iter().map(i64::from_ne_bytes).collect())
    }

    /// One value of an enum.
    fn one(&self, name: u32, kind: u32) -> Option<u32> {
        self.values(name, kind)?
            .first()
            .map(|&v| u32::from_ne_bytes(v))
    }

    fn choice(&self, name: u32) -> Option<bool> {
        self.values::<1>(name, 2)?.first().map(|v| v[0] != 0)
    }

    /// What other descriptors come to.
    unsafe fn others(&self, name: u32) -> Option<Vec<Made>> {
        let values = self.values(name, 15)?.into_iter();
        let other = |value| {
            (*(u64::from_ne_bytes(value) as *const Descriptor))
                .made
                .clone()
        };
        values.map(other).collect()
    }

    unsafe fn tensor(&self, name: u32) -> Option<Tensor> {
        match self.others(name)?.pop()? {
            Made::Tensor(tensor) => Some(tensor),
            _ => None,
        }
    }

    unsafe fn how(&self, name: u32) -> Option<Kind> {
        match self.others(name)?.pop()? {
            Made::How(kind) => Some(kind),
            _ => None,
        }
    }

    unsafe fn operation(&self, kind: Kind, operands: &[u32], to: u32) -> Option<Made> {
        let mut found = Vec::new();
        for (at, &name) in operands.iter().enumerate() {
            match self.tensor(name) {
                Some(tensor) => found.push(tensor),
                // The first is always there.
                None if at > 0 => {}
                None => return None,
            }
        }
        let to = self.tensor(to)?;
        let operands = found;
        let operation = Operation { kind, operands, to };
        operation.is_whole().then_some(Made::Operation(operation))
    }

    /// What its attributes come to; nothing where one is missing or contradicts another.
    unsafe fn made(&self) -> Option<Made> {
        Some(match self.kind {
            // Pointwise: mode, type of arithmetic, axis.
            0 => {
                let precision = self.one(1, 1)?;
                let mode = self.one(0, 14)?;
                let axis = match mode {
                    501 => *self.numbers(9)?.first()?,
                    _ => 0,
                };
                let fits = precision == if mode == 303 { BOOLEAN } else { FLOAT };
                return fits.then_some(Made::How(Kind::Pointwise(mode, axis)));
            }
            4 => match (self.one(200, 8)?, self.others(201)?.pop()?) {
                (3, Made::Graph(graph)) => Made::Heuristic(graph),
                _ => return None,
            },
            5 => match (self.values::<8>(400, 0)?.len(), self.others(401)?.pop()?) {
                (1, Made::Engine(graph)) => Made::Plan(graph),
                _ => return None,
            },
            13 => return self.operation(self.how(750)?, &[751, 752, 758], 753),
            15 => return self.graph(),
            16 => {
                let addresses = self.values(1001, 6)?.into_iter().map(u64::from_ne_bytes);
                let ids = self.numbers(1000)?;
                let workspace = self.values(1003, 6)?.pop().map(u64::from_ne_bytes)?;
                if ids.len() != addresses.len() {
                    return None;
                }
                Made::Pack(ids.into_iter().zip(addresses).collect(), workspace)
            }
            17 => {
                let four = |name| <[i64; 4]>::try_from(self.numbers(name)?).ok();
                let dtype = self.one(901, 1)?;
                let aligned = *self.numbers(900)?.first()? == 16;
                if !aligned || ![FLOAT, INT32, BFLOAT16, BOOLEAN].contains(&dtype) {
                    return None;
                }
                Made::Tensor(Tensor {
                    id: *self.numbers(906)?.first()?,
                    dtype,
                    dims: four(902)?,
                    strides: four(903)?,
                    is_virtual: self.choice(907)?,
                    is_value: self.choice(908)?,
                })
            }
            18 if self.one(1500, 1)? == FLOAT => Made::How(Kind::Matmul),
            19 => return self.operation(self.how(1523)?, &[1520, 1521], 1522),
            21 if self.one(1601, 1)? == FLOAT => Made::How(Kind::Reduction(self.one(1600, 18)?)),
            22 => return self.operation(self.how(1612)?, &[1610], 1611),
            31 => return self.operation(Kind::Reshape, &[2200], 2201),
            _ => return None,
        })
    }

    /// A graph whose tensors are known by one id each, and are computed before they are used.
    unsafe fn graph(&self) -> Option<Made> {
        if self.values::<8>(800, 0)?.len() != 1 {
            return None;
        }
        let mut operations = Vec::new();
        let mut known: BTreeMap<i64, Tensor> = BTreeMap::new();
        for made in self.others(801)? {
            let Made::Operation(operation) = made else {
                return None;
            };
            for operand in &operation.operands {
                let known = known.entry(operand.id);
                let missing = matches!(known, std::collections::btree_map::Entry::Vacant(_));
                let known = known.or_insert_with(|| operand.clone());
                if (missing && operand.is_virtual) || known != operand {
                    return None;
                }
            }
            let to = operation.to.clone();
            if known.insert(to.id, to).is_some() {
                return None;
            }
            operations.push(operation);
        }
        Some(Made::Graph(Arc::new(Graph { operations })))
    }
}

#[no_mangle]
unsafe extern "C" fn cudnnBackendExecute(
    handle: *const Handle,
    plan: *const Descriptor,
    pack: *const Descriptor,
) -> u32 {
    if call("cudnnBackendExecute").is_err() {
        return EXECUTION_FAILED;
    }
    let (Some(Made::Plan(graph)), Some(Made::Pack(addresses, workspace))) =
        (&(*plan).made, &(*pack).made)
    else {
        return BAD_PARAM;
    };
    let (graph, addresses, workspace) = (Arc::clone(graph), addresses.clone(), *workspace);
    let given = graph.given();
    if !given.keys().eq(addresses.keys()) {
        return BAD_PARAM;
    }
    let mut values = BTreeMap::new();
    for (id, tensor) in &given {
        let address = addresses[id];
        if tensor.is_value {
            values.insert(*id, (address as *const f32).read());
        } else if !tensor.is_at(address) {
            return BAD_PARAM;
        }
    }
    if workspace % 16 != 0 || check(Side::Card, workspace, graph.workspace()).is_err() {
        return BAD_PARAM;
    }
    let ns = 5_000 + (graph.flops() as f64 / RATE) as u64;
    let queued = (*(*handle).stream).run(ns, move || {
        injected("attention")?;
        // SAFETY: all tensors and the workspace lie within allocations.
        unsafe { graph.run(&addresses, &values, workspace) };
        Ok(())
    });
    queued.map_or(EXECUTION_FAILED, |()| SUCCESS)
}
