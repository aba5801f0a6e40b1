//! cuBLASLt: plain loops, columns first, sums in f32.

use std::ffi::{c_int, c_void};

use half::bf16;

use crate::faults::injected;
use crate::memory::{check, Side};
use crate::streams::Stream;

/// cuBLASLt's status codes that are given here.
const SUCCESS: u32 = 0;
const INVALID_VALUE: u32 = 7;
const EXECUTION_FAILED: u32 = 13;
const NOT_SUPPORTED: u32 = 15;

const COMPUTE_F32: u32 = 68;
const REAL_F32: u32 = 0;
const REAL_BF16: u32 = 14;
const TURNED: u32 = 1;
const BIAS: u32 = 4;
/// What an algorithm is known by.
const TAG: u64 = 0x0EBB_71DE;
/// Operations of a nanosecond on a virtual clock.
const RATE: f64 = 500_000.0;

/// A product's operations.
#[derive(Clone, Copy, Default)]
pub struct Description {
    turned: [u32; 2],
    epilogue: u32,
    bias: u64,
}

/// A matrix in memory.
#[derive(Clone, Copy)]
pub struct Layout {
    dtype: u32,
    rows: u64,
    columns: u64,
    stride: u64,
}

/// What an algorithm is asked for with.
#[derive(Default)]
pub struct Preference {
    workspace: u64,
}

/// What the heuristic answers.
#[repr(C)]
pub struct Answer {
    algorithm: [u64; 8],
    workspace: usize,
    state: u32,
    waves: f32,
    reserved: [c_int; 4],
}

#[no_mangle]
unsafe extern "C" fn cublasLtCreate(handle: *mut *mut c_void) -> u32 {
    if injected("cublasLtCreate").is_err() {
        return EXECUTION_FAILED;
    }
    *handle = Box::into_raw(Box::new(0u64)).cast();
    SUCCESS
}

#[no_mangle]
unsafe extern "C" fn cublasLtDestroy(handle: *mut c_void) -> u32 {
    drop(Box::from_raw(handle.cast::<u64>()));
    SUCCESS
}

#[no_mangle]
unsafe extern "C" fn cublasLtMatmulDescCreate(
    made: *mut *mut Description,
    compute: u32,
    scale: u32,
) -> u32 {
    if (compute, scale) != (COMPUTE_F32, REAL_F32) {
        return NOT_SUPPORTED;
    }
    *made = Box::into_raw(Box::default());
    SUCCESS
}

#[no_mangle]
unsafe extern "C" fn cublasLtMatmulDescDestroy(description: *mut Description) -> u32 {
    drop(Box::from_raw(description));
    SUCCESS
}

#[no_mangle]
unsafe extern "C" fn cublasLtMatmulDescSetAttribute(
    description: *mut Description,
    attribute: u32,
    value: *const c_void,
    bytes: usize,
) -> u32 {
    let description = &mut *description;
    match (attribute, bytes) {
        (3, 4) => description.turned[0] = value.cast::<u32>().read(),
        (4, 4) => description.turned[1] = value.cast::<u32>().read(),
        (7, 4) => description.epilogue = value.cast::<u32>().read(),
        (8, 8) => description.bias = value.cast::<u64>().read(),
        _ => return INVALID_VALUE,
    }
    SUCCESS
}

#[no_mangle]
unsafe extern "C" fn cublasLtMatrixLayoutCreate(
    made: *mut *mut Layout,
    dtype: u32,
    rows: u64,
    columns: u64,
    stride: i64,
) -> u32 {
    let stride = u64::try_from(stride).unwrap_or(0);
    if rows == 0 || columns == 0 || stride < rows || ![REAL_F32, REAL_BF16].contains(&dtype) {
        return INVALID_VALUE;
    }
    let layout = Layout {
        dtype,
        rows,
        columns,
        stride,
    };
    *made = Box::into_raw(Box::new(layout));
    SUCCESS
}

#[no_mangle]
unsafe extern "C" fn cublasLtMatrixLayoutDestroy(layout: *mut Layout) -> u32 {
    drop(Box::from_raw(layout));
    SUCCESS
}

#[no_mangle]
unsafe extern "C" fn cublasLtMatmulPreferenceCreate(made: *mut *mut Preference) -> u32 {
    *made = Box::into_raw(Box::default());
    SUCCESS
}

#[no_mangle]
unsafe extern "C" fn cublasLtMatmulPreferenceDestroy(preference: *mut Preference) -> u32 {
    drop(Box::from_raw(preference));
    SUCCESS
}

#[no_mangle]
unsafe extern "C" fn cublasLtMatmulPreferenceSetAttribute(
    preference: *mut Preference,
    attribute: u32,
    value: *const c_void,
    bytes: usize,
) -> u32 {
    match (attribute, bytes) {
        (1, 8) => (*preference).workspace = value.cast::<u64>().read(),
        // Alignments of the four operands.
        (5..=8, 4) => {}
        _ => return INVALID_VALUE,
    }
    SUCCESS
}

#[no_mangle]
unsafe extern "C" fn cublasLtMatmulAlgoGetHeuristic(
    _handle: *mut c_void,
    description: *const Description,
    a: *const Layout,
    b: *const Layout,
    c: *const Layout,
    d: *const Layout,
    preference: *const Preference,
    wanted: c_int,
    answers: *mut Answer,
    found: *mut c_int,
) -> u32 {
    *found = 0;
    if injected("cublasLtMatmulAlgoGetHeuristic").is_err() {
        return NOT_SUPPORTED;
    }
    if wanted < 1 || Product::new(*description, *a, *b, *c, *d).is_err() {
        return INVALID_VALUE;
    }
    let workspace = 1 << 20;
    *found = i32::from((*preference).workspace >= workspace);
    answers.write(Answer {
        algorithm: [TAG, 0, 0, 0, 0, 0, 0, 0],
        workspace: workspace as usize,
        state: SUCCESS,
        waves: 1.0,
        reserved: [0; 4],
    });
    SUCCESS
}

#[no_mangle]
unsafe extern "C" fn cublasLtMatmul(
    _handle: *mut c_void,
    description: *const Description,
    alpha: *const f32,
    a: u64,
    a_layout: *const Layout,
    b: u64,
    b_layout: *const Layout,
    beta: *const f32,
    c: u64,
    c_layout: *const Layout,
    d: u64,
    d_layout: *const Layout,
    algorithm: *const [u64; 8],
    workspace: u64,
    workspace_bytes: usize,
    stream: *const Stream,
) -> u32 {
    if injected("cublasLtMatmul").is_err() {
        return EXECUTION_FAILED;
    }
    if algorithm.is_null() || (*algorithm)[0] != TAG {
        return INVALID_VALUE;
    }
    let layouts = [*a_layout, *b_layout, *c_layout, *d_layout];
    let [a_layout, b_layout, c_layout, d_layout] = layouts;
    let Ok(product) = Product::new(*description, a_layout, b_layout, c_layout, d_layout) else {
        return INVALID_VALUE;
    };
    let product = Product {
        addresses: [a, b, c, d],
        alpha: *alpha,
        beta: *beta,
        ..product
    };
    let operands = [a, b, c, d].into_iter().zip(layouts);
    let within = |(address, layout): (u64, Layout)| {
        let size = size_of_type(layout.dtype);
        let elements = (layout.columns - 1) * layout.stride + layout.rows;
        address % size == 0 && check(Side::Card, address, elements * size).is_ok()
    };
    let used = |at: usize| at != 2 || product.beta != 0.0;
    let bias = product.description.epilogue != BIAS
        || check(
            Side::Card,
            product.description.bias,
            product.m * product.size(3),
        )
        .is_ok();
    let scratch = check(Side::Card, workspace, workspace_bytes as u64).is_ok();
    let all = operands
        .enumerate()
        .all(|(at, operand)| !used(at) || within(operand));
    if !(all && bias && scratch) {
        return INVALID_VALUE;
    }
    let operations = 2.0 * (product.m * product.n) as f64 * product.k as f64;
    let ns = 5_000 + (operations / RATE) as u64;
    let queued = (*stream).run(ns, move || {
        injected("product")?;
        // SAFETY: all operands lie within allocations.
        unsafe { product.run() };
        Ok(())
    });
    queued.map_or(EXECUTION_FAILED, |()| SUCCESS)
}

fn size_of_type(dtype: u32) -> u64 {
    if dtype == REAL_F32 {
        4
    } else {
        2
    }
}

/// `d = alpha·a·b + beta·c + bias`.
#[derive(Clone, Copy)]
struct Product {
    description: Description,
    layouts: [Layout; 4],
    addresses: [u64; 4],
    m: u64,
    n: u64,
    k: u64,
    alpha: f32,
    beta: f32,
}

impl Product {
    /// Compares the operands' sizes and types.
    fn new(
        description: Description,
        a: Layout,
        b: Layout,
        c: Layout,
        d: Layout,
    ) -> Result<Product, ()> {
        let shape = |layout: Layout, turned: u32| match turned {
            TURNED => (layout.columns, layout.rows),
            _ => (layout.rows, layout.columns),
        };
        let (m, k) = shape(a, description.turned[0]);
        let (inner, n) = shape(b, description.turned[1]);
        // Of two bf16 the result may be f32.
        let to = [c.dtype, d.dtype];
        let alike = b.dtype == a.dtype && [[a.dtype; 2], [REAL_F32; 2]].contains(&to);
        let results = [c, d].iter().all(|r| (r.rows, r.columns) == (m, n));
        if inner != k || !alike || !results || ![0, 1, BIAS].contains(&description.epilogue) {
            return Err(());
        }
        Ok(Product {
            description,
            layouts: [a, b, c, d],
            addresses: [0; 4],
            m,
            n,
            k,
            alpha: 1.0,
            beta: 0.0,
        })
    }

    /// Bytes of an element of an operand.
    fn size(&self, operand: usize) -> u64 {
        size_of_type(self.layouts[operand].dtype)
    }

    unsafe fn get(&self, operand: usize, base: u64, index: u64) -> f32 {
        let size = self.size(operand);
        let address = base + index * size;
        match size {
            4 => (address as *const f32).read(),
            _ => bf16::from_bits((address as *const u16).read()).to_f32(),
        }
    }

    /// An operand as rows of its `k` elements, so that sums run along memory.
    unsafe fn rows(&self, operand: usize, count: u64, along: bool) -> Vec<f32> {
        let (base, stride) = (self.addresses[operand], self.layouts[operand].stride);
        let mut rows = Vec::with_capacity((count * self.k) as usize);
        for row in 0..count {
            for i in 0..self.k {
                let index = if along {
                    row * stride + i
                } else {
                    i * stride + row
                };
                rows.push(self.get(operand, base, index));
            }
        }
        rows
    }

    unsafe fn run(&self) {
        let turned = self.description.turned.map(|turned| turned == TURNED);
        let a = self.rows(0, self.m, turned[0]);
        let b = self.rows(1, self.n, !turned[1]);
        let k = self.k as usize;
        for (column, b) in b.chunks_exact(k).enumerate() {
            for (row, a) in a.chunks_exact(k).enumerate() {
                let sum: f32 = a.iter().zip(b).map(|(a, b)| a * b).sum();
                let at = |layout: usize| column as u64 * self.layouts[layout].stride + row as u64;
                let mut value = self.alpha * sum;
                if self.beta != 0.0 {
                    value += self.beta * self.get(2, self.addresses[2], at(2));
                }
                if self.description.epilogue == BIAS {
                    value += self.get(3, self.description.bias, row as u64);
                }
                let to = self.addresses[3] + at(3) * self.size(3);
                match self.size(3) {
                    4 => (to as *mut f32).write(value),
                    _ => (to as *mut u16).write(bf16::from_f32(value).to_bits()),
                }
            }
        }
    }
}
