//! cuBLASLt: plain loops, columns first, sums in f32, of integers in i32. Codes of 8 bits are taken
//! only as a card takes them: what is summed over along memory, in whole 16 bytes.

use std::env;
use std::ffi::{c_int, c_void};

use half::bf16;

use crate::faults::{injected, number};
use crate::memory::{check, Side};
use crate::streams::Stream;

/// cuBLASLt's status codes that are given here.
const SUCCESS: u32 = 0;
const INVALID_VALUE: u32 = 7;
const EXECUTION_FAILED: u32 = 13;
const NOT_SUPPORTED: u32 = 15;

const COMPUTE_F32: u32 = 68;
const COMPUTE_I32: u32 = 72;
const REAL_F32: u32 = 0;
const REAL_BF16: u32 = 14;
const REAL_E4M3: u32 = 28;
const INTEGER_8: u32 = 3;
const INTEGER_32: u32 = 10;
/// A scale for every row or column.
const OUTER_VECTOR: u32 = 3;
const TURNED: u32 = 1;
const BIAS: u32 = 4;
/// What an algorithm is known by.
const TAG: u64 = 0x0EBB_71DE;
/// What an algorithm takes beside the operands.
const WORKSPACE: u64 = 1 << 20;
/// Percents of a product's time by each algorithm; none is shorter than an empty kernel, whose time
/// is taken for the timer's.
const TIMES: [u64; 4] = [130, 160, 100, 120];
/// Operations of a nanosecond on a virtual clock.
const RATE: f64 = 500_000.0;

/// A product's operations.
#[derive(Clone, Copy, Default)]
pub struct Description {
    /// Whether sums are integers.
    integers: bool,
    turned: [u32; 2],
    epilogue: u32,
    bias: u64,
    /// What the bias is of, where that is said.
    of_bias: Option<u32>,
    /// What the scales of `a` and `b` are of, and where they are.
    modes: [u32; 2],
    scales: [u64; 2],
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
extern "C" fn cublasLtGetVersion() -> usize {
    number("EBBTIDE_STANDIN_CUBLASLT", 130_000) as usize
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
    let integers = match (compute, scale) {
        (COMPUTE_F32, REAL_F32) => false,
        (COMPUTE_I32, INTEGER_32) => true,
        _ => return NOT_SUPPORTED,
    };
    let description = Description {
        integers,
        ..Description::default()
    };
    *made = Box::into_raw(Box::new(description));
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
        (17, 8) => description.scales[0] = value.cast::<u64>().read(),
        (18, 8) => description.scales[1] = value.cast::<u64>().read(),
        (26, 4) => description.of_bias = Some(value.cast::<u32>().read()),
        (31, 4) => description.modes[0] = value.cast::<u32>().read(),
        (32, 4) => description.modes[1] = value.cast::<u32>().read(),
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
    let types = [REAL_F32, REAL_BF16, REAL_E4M3, INTEGER_8, INTEGER_32];
    if rows == 0 || columns == 0 || stride < rows || !types.contains(&dtype) {
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
    let Ok(product) = Product::new(*description, *a, *b, *c, *d) else {
        return INVALID_VALUE;
    };
    // Of a card that takes a scale only for a whole matrix.
    let apart = env::var("EBBTIDE_STANDIN_SCALES").is_ok_and(|scales| scales == "apart");
    if wanted < 1 || (product.is_scaled() && apart) {
        return NOT_SUPPORTED;
    }
    if (*preference).workspace < WORKSPACE {
        return SUCCESS;
    }
    *found = wanted.min(TIMES.len() as c_int);
    for number in 0..*found {
        answers.add(number as usize).write(answer(number as u64));
    }
    SUCCESS
}

/// An algorithm by its number.
fn answer(number: u64) -> Answer {
    Answer {
        algorithm: [TAG, number, 0, 0, 0, 0, 0, 0],
        workspace: WORKSPACE as usize,
        state: SUCCESS,
        waves: 1.0,
        reserved: [0; 4],
    }
}

/// The percents of an algorithm's time, if it is one.
fn percents(algorithm: &[u64; 8]) -> Option<u64> {
    let number = usize::try_from(algorithm[1]).ok()?;
    TIMES.get(number).copied().filter(|_| algorithm[0] == TAG)
}

#[no_mangle]
unsafe extern "C" fn cublasLtMatmulAlgoCheck(
    _handle: *mut c_void,
    description: *const Description,
    a: *const Layout,
    b: *const Layout,
    c: *const Layout,
    d: *const Layout,
    algorithm: *const [u64; 8],
    checked: *mut Answer,
) -> u32 {
    let product = Product::new(*description, *a, *b, *c, *d);
    if product.is_err() || percents(&*algorithm).is_none() {
        return INVALID_VALUE;
    }
    checked.write(answer((*algorithm)[1]));
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
    let percents = (!algorithm.is_null()).then(|| percents(&*algorithm));
    let Some(percents) = percents.flatten() else {
        return INVALID_VALUE;
    };
    let layouts = [*a_layout, *b_layout, *c_layout, *d_layout];
    let [a_layout, b_layout, c_layout, d_layout] = layouts;
    let Ok(product) = Product::new(*description, a_layout, b_layout, c_layout, d_layout) else {
        return INVALID_VALUE;
    };
    let factor = |factor: *const f32| match product.description.integers {
        true => factor.cast::<i32>().read() as f32,
        false => *factor,
    };
    let product = Product {
        addresses: [a, b, c, d],
        alpha: factor(alpha),
        beta: factor(beta),
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
    let scales = product.description.scales;
    let scaled = !product.is_scaled()
        || check(Side::Card, scales[0], 4 * product.m).is_ok()
            && check(Side::Card, scales[1], 4 * product.n).is_ok();
    let scratch = check(Side::Card, workspace, workspace_bytes as u64).is_ok();
    let all = operands
        .enumerate()
        .all(|(at, operand)| !used(at) || within(operand));
    if !(all && bias && scaled && scratch) {
        return INVALID_VALUE;
    }
    let operations = 2.0 * (product.m * product.n) as f64 * product.k as f64;
    let ns = (5_000 + (operations / RATE) as u64) * percents / 100;
    let queued = (*stream).run(ns, move || {
        injected("product")?;
        // SAFETY: all operands lie within allocations.
        unsafe { product.run() };
        Ok(())
    });
    queued.map_or(EXECUTION_FAILED, |()| SUCCESS)
}

fn size_of_type(dtype: u32) -> u64 {
    match dtype {
        REAL_F32 | INTEGER_32 => 4,
        REAL_BF16 => 2,
        _ => 1,
    }
}

/// A number of e4m3 (Micikevicius et al. 2022).
fn e4m3(code: u8) -> f32 {
    let (exponent, fraction) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let size = match (exponent, code & 7) {
        (15, 7) => f32::NAN,
        (0, _) => fraction / 8.0 * 2f32.powi(-6),
        _ => (1.0 + fraction / 8.0) * 2f32.powi(exponent - 7),
    };
    if code < 0x80 {
        size
    } else {
        -size
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
        let scaled = description.modes == [OUTER_VECTOR; 2];
        let numbers = match (description.integers, a.dtype) {
            (true, INTEGER_8) => d.dtype == INTEGER_32 && m % 4 == 0,
            (false, REAL_E4M3) if scaled => [REAL_F32, REAL_BF16].contains(&d.dtype) && m % 16 == 0,
            (false, REAL_E4M3) => d.dtype == REAL_F32 && m % 16 == 0,
            // Of two bf16 the result may be f32.
            (false, REAL_F32 | REAL_BF16) => [a.dtype, REAL_F32].contains(&d.dtype),
            _ => false,
        };
        let along = description.turned == [TURNED, 0] && k % 16 == 0;
        let codes = size_of_type(a.dtype) > 1 || along && a.stride % 16 == 0 && b.stride % 16 == 0;
        // Of FP8 it is bf16 where nothing is said, and has to be.
        let usual = match a.dtype {
            REAL_E4M3 => REAL_BF16,
            _ => d.dtype,
        };
        let of_bias = [usual, description.of_bias.unwrap_or(usual)];
        let biased = description.epilogue != BIAS || of_bias == [d.dtype; 2];
        let numbers = numbers && biased;
        let alike = a.dtype == b.dtype && c.dtype == d.dtype && numbers && codes;
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

    /// Whether rows and columns have scales.
    fn is_scaled(&self) -> bool {
        self.description.modes == [OUTER_VECTOR; 2]
    }

    unsafe fn get(&self, dtype: u32, base: u64, index: u64) -> f32 {
        let address = base + index * size_of_type(dtype);
        match dtype {
            REAL_F32 => (address as *const f32).read(),
            REAL_BF16 => bf16::from_bits((address as *const u16).read()).to_f32(),
            REAL_E4M3 => e4m3((address as *const u8).read()),
            INTEGER_8 => f32::from((address as *const i8).read()),
            _ => (address as *const i32).read() as f32,
        }
    }

    /// An operand as rows of its `k` elements, so that sums run along memory.
    unsafe fn rows(&self, operand: usize, count: u64, along: bool) -> Vec<f32> {
        let Layout { dtype, stride, .. } = self.layouts[operand];
        let base = self.addresses[operand];
        let mut rows = Vec::with_capacity((count * self.k) as usize);
        for row in 0..count {
            for i in 0..self.k {
                let index = if along {
                    row * stride + i
                } else {
                    i * stride + row
                };
                rows.push(self.get(dtype, base, index));
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
                let products = a.iter().zip(b).map(|(a, b)| a * b);
                let sum: f32 = match self.description.integers {
                    true => products.map(f64::from).sum::<f64>() as f32,
                    false => products.sum(),
                };
                let scale = |of: usize, at: usize| {
                    let scales = self.description.scales[of] + 4 * at as u64;
                    if self.is_scaled() {
                        (scales as *const f32).read()
                    } else {
                        1.0
                    }
                };
                let at = |layout: usize| column as u64 * self.layouts[layout].stride + row as u64;
                let dtype = self.layouts[3].dtype;
                let mut value = self.alpha * sum * scale(0, row) * scale(1, column);
                if self.beta != 0.0 {
                    value += self.beta * self.get(dtype, self.addresses[2], at(2));
                }
                if self.description.epilogue == BIAS {
                    value += self.get(dtype, self.description.bias, row as u64);
                }
                let to = self.addresses[3] + at(3) * self.size(3);
                match dtype {
                    REAL_F32 => (to as *mut f32).write(value),
                    INTEGER_32 => (to as *mut i32).write(value as i32),
                    _ => (to as *mut u16).write(bf16::from_f32(value).to_bits()),
                }
            }
        }
    }
}
