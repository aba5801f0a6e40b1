//! Matrix products by cuBLASLt.
//!
//! Sums are f32, whatever the elements; those of integers are i32. The algorithm of a product is
//! what the library's heuristic proposes for its sizes, strides and the alignment of its operands,
//! asked once and kept: the same product takes the same way and gives the same bits, on every tile
//! and in every plan. A multiplier that times takes the fastest of several proposals instead, which
//! a profile keeps and gives to later ones of the same library.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::ptr;

use cudarc::cublaslt::sys::{self, cublasStatus_t};

use super::driver::{Allocation, Mark, Queue};
use super::products::{Matrix, Numbers, Product};
use crate::device::packed::Storage;
use crate::device::{Cause, Failure, Result};
use crate::format::number::Positive;
use crate::format::profile::{AlgorithmsSection, TimedAlgorithm};
use crate::profile::Dtype;

/// What the library may use beside the operands: what it asks for on large cards.
pub(super) const WORKSPACE_BYTES: u64 = 32 << 20;

/// Proposals that are timed, and products of each, after one that does not count.
const PROPOSALS: usize = 8;
const PRODUCTS: u32 = 3;

/// What the library knows an algorithm by.
pub(super) type Algorithm = [u64; 8];

/// The library and its version.
pub(super) fn library() -> String {
    // SAFETY: it takes nothing.
    format!("cuBLASLt {}", unsafe { sys::cublasLtGetVersion() })
}

/// An algorithm from its hexadecimal digits.
pub(super) fn algorithm(text: &str) -> Option<Algorithm> {
    let word = |at: usize| u64::from_str_radix(text.get(16 * at..16 * (at + 1))?, 16).ok();
    let mut algorithm = Algorithm::default();
    for (at, part) in algorithm.iter_mut().enumerate() {
        *part = word(at)?;
    }
    (text.len() == 128).then_some(algorithm)
}

/// cuBLASLt with its memory.
pub(super) struct Multiplier {
    handle: sys::cublasLtHandle_t,
    /// Algorithms by what [`Shape`]s are called.
    given: BTreeMap<String, Algorithm>,
    /// What was timed, where algorithms are timed.
    timed: Option<RefCell<HashMap<Shape, TimedAlgorithm>>>,
    /// None where the library has no algorithm.
    plans: RefCell<HashMap<Shape, Option<Plan>>>,
}

/// All that an algorithm depends on.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Shape {
    sizes: [u64; 3],
    turned: [bool; 2],
    /// Of `a`, `b` and `out`.
    strides: [u64; 3],
    dtypes: [Dtype; 2],
    adds: bool,
    bias: bool,
    numbers: Kind,
    /// Bytes to which `a`, `b`, what is added, and `out` with the bias are aligned.
    aligned: [u32; 4],
}

/// [`Numbers`] without addresses.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Elements,
    Sums(Storage),
    Scaled,
}

impl Shape {
    /// What files call it.
    fn name(&self) -> String {
        let Shape {
            sizes: [m, n, k],
            turned,
            strides: [a, b, out],
            dtypes: [from, to],
            adds,
            bias,
            numbers,
            aligned,
        } = *self;
        let turned = turned.map(|turned| if turned { "t" } else { "n" }).concat();
        let added = match (adds, bias) {
            (false, false) => "",
            (true, false) => " + c",
            (false, true) => " + bias",
            (true, true) => " + c + bias",
        };
        let numbers = match numbers {
            Kind::Elements if from == to => from.to_string(),
            Kind::Elements => format!("{from} to {to}"),
            Kind::Sums(storage) => format!("sums of {storage}"),
            Kind::Scaled => format!("scaled fp8 to {to}"),
        };
        let aligned = aligned.map(|bytes| bytes.to_string()).join(" ");
        format!("{m}x{n}x{k} {turned}{added}, {numbers}, strides {a} {b} {out}, aligned {aligned}")
    }

    fn new(product: &Product, addresses: Addresses) -> Shape {
        let Addresses { a, b, out, .. } = addresses;
        let added = addresses.added.unwrap_or(out);
        // The library has no preference for the bias: it is held to be aligned as the result is.
        let bias = addresses.bias.unwrap_or(out);
        Shape {
            sizes: product.sizes,
            turned: [product.a.turned, product.b.turned],
            strides: [product.a.stride, product.b.stride, product.stride],
            dtypes: product.dtypes,
            adds: product.added.is_some(),
            bias: product.bias.is_some(),
            numbers: match product.numbers {
                Numbers::Elements => Kind::Elements,
                Numbers::Sums(storage) => Kind::Sums(storage),
                Numbers::Scaled(_) => Kind::Scaled,
            },
            aligned: [a, b, added, out | bias].map(alignment),
        }
    }
}

/// The addresses of a product's operands.
#[derive(Clone, Copy)]
pub(super) struct Addresses {
    pub a: u64,
    pub b: u64,
    pub added: Option<u64>,
    pub bias: Option<u64>,
    pub out: u64,
    pub scales: Option<[u64; 2]>,
}

/// A product as the library knows it.
struct Plan {
    product: Description,
    a: Layout,
    b: Layout,
    out: Layout,
    algorithm: Cell<Algorithm>,
    /// All that the library proposes, where they are timed.
    proposals: Vec<Algorithm>,
}

impl Multiplier {
    /// Opens the library.
    ///
    /// # Errors
    /// What the library says.
    pub fn new(given: BTreeMap<String, Algorithm>, times: bool) -> Result<Multiplier> {
        let mut handle = ptr::null_mut();
        // SAFETY: the pointer is to a local; a context is current.
        check("cublasLtCreate", unsafe {
            sys::cublasLtCreate(&mut handle)
        })?;
        Ok(Multiplier {
            handle,
            given,
            timed: times.then(RefCell::default),
            plans: RefCell::default(),
        })
    }

    /// Queues a product.
    ///
    /// # Safety
    /// The operands lie, at their addresses, within allocations that outlive the queued work, and
    /// so does the workspace, which nothing else uses at that place of the stream.
    pub unsafe fn multiply(
        &self,
        queue: &Queue,
        product: &Product,
        addresses: Addresses,
        workspace: &Allocation,
    ) -> Result<()> {
        let shape = Shape::new(product, addresses);
        self.know(&shape, product)?;
        let plans = self.plans.borrow();
        let Some(Some(plan)) = plans.get(&shape) else {
            let [m, n, k] = product.sizes;
            return Err(Failure::new(Cause::Failed(format!(
                "cuBLASLt has no algorithm for a product of {m}×{k} and {k}×{n}{}",
                match shape.numbers {
                    Kind::Elements => "",
                    _ => " in 8 bits",
                }
            ))));
        };
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        if let Some(bias) = addresses.bias {
            let attribute = Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER;
            plan.product.set(attribute, &bias)?;
        }
        if let Some([a, b]) = addresses.scales {
            let (of_a, of_b) = (
                Attribute::CUBLASLT_MATMUL_DESC_A_SCALE_POINTER,
                Attribute::CUBLASLT_MATMUL_DESC_B_SCALE_POINTER,
            );
            plan.product.set(of_a, &a)?;
            plan.product.set(of_b, &b)?;
        }
        let [factor, kept] = product.factors;
        let kept = if shape.adds { kept } else { 0.0 };
        let factors = match shape.numbers {
            Kind::Sums(Storage::Int8) => [1, u32::from(shape.adds)],
            _ => [factor, kept].map(f32::to_bits),
        };
        let run = |algorithm| self.run(queue, (plan, factors), addresses, workspace, algorithm);
        if let Some(timed) = &self.timed {
            if !timed.borrow().contains_key(&shape) {
                timed.borrow_mut().insert(shape, time(queue, plan, run)?);
            }
        }
        run(plan.algorithm.get())
    }

    /// Queues a product by an algorithm.
    ///
    /// # Safety
    /// As [`Multiplier::multiply`].
    unsafe fn run(
        &self,
        queue: &Queue,
        (plan, factors): (&Plan, [u32; 2]),
        addresses: Addresses,
        workspace: &Allocation,
        algorithm: Algorithm,
    ) -> Result<()> {
        let algorithm = sys::cublasLtMatmulAlgo_t { data: algorithm };
        let pointer = |address: u64| address as *const c_void;
        let status = sys::cublasLtMatmul(
            self.handle,
            plan.product.0,
            (&raw const factors[0]).cast(),
            pointer(addresses.a),
            plan.a.0,
            pointer(addresses.b),
            plan.b.0,
            (&raw const factors[1]).cast(),
            pointer(addresses.added.unwrap_or(addresses.out)),
            plan.out.0,
            addresses.out as *mut c_void,
            plan.out.0,
            &algorithm,
            workspace.address as *mut c_void,
            workspace.bytes as usize,
            queue.raw().cast(),
        );
        check("cublasLtMatmul", status)
    }

    /// Whether the library has an algorithm for a product.
    pub fn serves(&self, product: &Product, addresses: Addresses) -> Result<bool> {
        let shape = Shape::new(product, addresses);
        self.know(&shape, product)?;
        Ok(matches!(self.plans.borrow().get(&shape), Some(Some(_))))
    }

    /// Has a product planned.
    fn know(&self, shape: &Shape, product: &Product) -> Result<()> {
        if !self.plans.borrow().contains_key(shape) {
            let plan = self.plan(shape, product)?;
            self.plans.borrow_mut().insert(*shape, plan);
        }
        Ok(())
    }

    /// Describes a product and asks for its algorithm; none where the library has none.
    fn plan(&self, shape: &Shape, product: &Product) -> Result<Option<Plan>> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        use sys::cublasLtMatmulPreferenceAttributes_t as Preference;
        use sys::cudaDataType as Type;
        let [m, n, k] = product.sizes;
        let of_elements = product.dtypes.map(|dtype| match dtype {
            Dtype::F32 => Type::CUDA_R_32F,
            _ => Type::CUDA_R_16BF,
        });
        let (of_operands, of_out) = match shape.numbers {
            Kind::Elements => (of_elements[0], of_elements[1]),
            Kind::Scaled => (Type::CUDA_R_8F_E4M3, of_elements[1]),
            Kind::Sums(Storage::Fp8) => (Type::CUDA_R_8F_E4M3, Type::CUDA_R_32F),
            Kind::Sums(Storage::Int8) => (Type::CUDA_R_8I, Type::CUDA_R_32I),
        };
        let described = Description::new(shape.numbers == Kind::Sums(Storage::Int8))?;
        // CUBLAS_OP_T and CUBLAS_OP_N, which cudarc binds for cuBLAS only.
        let operation = |matrix: &Matrix| u32::from(matrix.turned);
        described.set(
            Attribute::CUBLASLT_MATMUL_DESC_TRANSA,
            &operation(&product.a),
        )?;
        described.set(
            Attribute::CUBLASLT_MATMUL_DESC_TRANSB,
            &operation(&product.b),
        )?;
        if shape.bias {
            let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS as u32;
            described.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
            // That of FP8 products is bf16 where nothing is said, whatever they make.
            let of_bias = Attribute::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE;
            described.set(of_bias, &(of_out as i32))?;
        }
        if shape.numbers == Kind::Scaled {
            let mode = sys::cublasLtMatmulMatrixScale_t::CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
            let modes = [
                Attribute::CUBLASLT_MATMUL_DESC_A_SCALE_MODE,
                Attribute::CUBLASLT_MATMUL_DESC_B_SCALE_MODE,
            ];
            // A library before 12.9 knows no such mode.
            let known = modes.map(|attribute| described.set(attribute, &(mode as u32)));
            if known.iter().any(Result::is_err) {
                return Ok(None);
            }
        }
        // What is in memory, before it is turned.
        let layout = |matrix: &Matrix, rows: u64, columns: u64| {
            let (rows, columns) = match matrix.turned {
                true => (columns, rows),
                false => (rows, columns),
            };
            Layout::new(of_operands, rows, columns, matrix.stride)
        };
        let (a, b) = (layout(&product.a, m, k)?, layout(&product.b, k, n)?);
        let out = Layout::new(of_out, m, n, product.stride)?;
        let wanted = Wanted::new()?;
        let most = Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        wanted.set(most, &WORKSPACE_BYTES)?;
        let alignments = [
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ];
        for (attribute, bytes) in alignments.into_iter().zip(&shape.aligned) {
            wanted.set(attribute, bytes)?;
        }
        let descriptors = (&described, &a, &b, &out);
        if let Some(&algorithm) = self.given.get(&shape.name()) {
            self.check(descriptors, algorithm)?;
            return Ok(Some(Plan::new((described, a, b, out), vec![algorithm])));
        }
        let most = if self.timed.is_some() { PROPOSALS } else { 1 };
        let answer = MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::zeroed();
        let mut found = [answer; PROPOSALS];
        let mut count = 0;
        // SAFETY: all descriptors are alive; there is room for the answers.
        let status = unsafe {
            sys::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                described.0,
                a.0,
                b.0,
                out.0,
                out.0,
                wanted.0,
                most as i32,
                found[0].as_mut_ptr(),
                &mut count,
            )
        };
        if count < 1 || status != cublasStatus_t::CUBLAS_STATUS_SUCCESS {
            return Ok(None);
        }
        // SAFETY: zeros are a value of it, and the library has written as many as it says.
        let answers = found[..count as usize]
            .iter()
            .map(|answer| unsafe { answer.assume_init_ref() });
        let proposals: Vec<Algorithm> = answers
            .filter(|answer| answer.state == cublasStatus_t::CUBLAS_STATUS_SUCCESS)
            .map(|answer| answer.algo.data)
            .collect();
        let none = proposals.is_empty();
        Ok((!none).then(|| Plan::new((described, a, b, out), proposals)))
    }

    /// Refuses an algorithm that the library does not take for a product.
    fn check(
        &self,
        (product, a, b, out): (&Description, &Layout, &Layout, &Layout),
        algorithm: Algorithm,
    ) -> Result<()> {
        let algorithm = sys::cublasLtMatmulAlgo_t { data: algorithm };
        let mut answer = MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::zeroed();
        // SAFETY: all descriptors are alive; the answer is a local that the library writes.
        let (status, answer) = unsafe {
            let status = sys::cublasLtMatmulAlgoCheck(
                self.handle,
                product.0,
                a.0,
                b.0,
                out.0,
                out.0,
                &algorithm,
                answer.as_mut_ptr(),
            );
            (status, answer.assume_init())
        };
        let taken = status == cublasStatus_t::CUBLAS_STATUS_SUCCESS;
        match taken && answer.workspaceSize as u64 <= WORKSPACE_BYTES {
            true => Ok(()),
            false => Err(Failure::refused(
                "an algorithm of the profile, which the library does not take for this product",
            )),
        }
    }

    /// What was timed, where algorithms are.
    pub fn timed(&self) -> Option<AlgorithmsSection> {
        let timed = self.timed.as_ref()?.borrow();
        let fastest = timed
            .iter()
            .map(|(shape, timed)| (shape.name(), timed.clone()));
        Some(AlgorithmsSection {
            library: library(),
            fastest: fastest.collect(),
        })
    }
}

impl Plan {
    /// A product of which the first proposal is taken.
    fn new(
        (product, a, b, out): (Description, Layout, Layout, Layout),
        proposals: Vec<Algorithm>,
    ) -> Plan {
        Plan {
            product,
            a,
            b,
            out,
            algorithm: Cell::new(proposals[0]),
            proposals,
        }
    }
}

/// Times a plan's proposals and has it take the fastest; those that cannot be queued are left out.
fn time(
    queue: &Queue,
    plan: &Plan,
    run: impl Fn(Algorithm) -> Result<()>,
) -> Result<TimedAlgorithm> {
    let (begin, end) = (Mark::new(true)?, Mark::new(true)?);
    let timed = |proposal: Algorithm| -> Result<(u64, Algorithm)> {
        begin.record(queue)?;
        (0..PRODUCTS).try_for_each(|_| run(proposal))?;
        end.record(queue)?;
        queue.synchronize()?;
        let ns = end.since(&begin)? / f64::from(PRODUCTS);
        Ok((ns.round() as u64, proposal))
    };
    let able = plan.proposals.iter().filter(|&&one| run(one).is_ok());
    let times = able.map(|&one| timed(one)).collect::<Result<Vec<_>>>()?;
    let fastest = times.iter().min_by_key(|(ns, _)| ns);
    let (Some(&(first, _)), Some(&(ns, fastest))) = (times.first(), fastest) else {
        // None of them: the first one's words say why.
        return run(plan.proposals[0]).and(Err(Failure::refused("no algorithm ran")));
    };
    plan.algorithm.set(fastest);
    let positive = |ns: u64| Positive::new(ns.clamp(1, Positive::MOST)).expect("in range");
    let digits = fastest.map(|word| format!("{word:016x}"));
    Ok(TimedAlgorithm {
        algorithm: digits.concat(),
        ns: positive(ns),
        first_ns: positive(first),
        timed: positive(times.len() as u64),
    })
}

impl Drop for Multiplier {
    fn drop(&mut self) {
        // SAFETY: the handle is used nowhere else; the device waits for its streams first.
        let _ = unsafe { sys::cublasLtDestroy(self.handle) };
    }
}

/// Bytes to which an address is aligned, up to 256.
fn alignment(address: u64) -> u32 {
    1 << address.trailing_zeros().min(8)
}

fn check(call: &str, status: cublasStatus_t) -> Result<()> {
    match status {
        cublasStatus_t::CUBLAS_STATUS_SUCCESS => Ok(()),
        _ => Err(Failure::new(Cause::Failed(format!("{call}: {status:?}")))),
    }
}

struct Description(sys::cublasLtMatmulDesc_t);

impl Description {
    /// A product with sums of f32, or of i32.
    fn new(of_integers: bool) -> Result<Description> {
        use sys::{cublasComputeType_t as Compute, cudaDataType as Type};
        let mut raw = ptr::null_mut();
        let (sums, scale) = match of_integers {
            true => (Compute::CUBLAS_COMPUTE_32I, Type::CUDA_R_32I),
            false => (Compute::CUBLAS_COMPUTE_32F, Type::CUDA_R_32F),
        };
        // SAFETY: the pointer is to a local.
        let status = unsafe { sys::cublasLtMatmulDescCreate(&mut raw, sums, scale) };
        check("cublasLtMatmulDescCreate", status)?;
        Ok(Description(raw))
    }

    fn set<T>(&self, attribute: sys::cublasLtMatmulDescAttributes_t, value: &T) -> Result<()> {
        let (from, size) = (ptr::from_ref(value).cast(), size_of::<T>());
        // SAFETY: the descriptor is alive; the value is copied, and is as long as is said.
        let status = unsafe { sys::cublasLtMatmulDescSetAttribute(self.0, attribute, from, size) };
        check("cublasLtMatmulDescSetAttribute", status)
    }
}

impl Drop for Description {
    fn drop(&mut self) {
        // SAFETY: it is used nowhere else.
        let _ = unsafe { sys::cublasLtMatmulDescDestroy(self.0) };
    }
}

struct Layout(sys::cublasLtMatrixLayout_t);

impl Layout {
    fn new(dtype: sys::cudaDataType, rows: u64, columns: u64, stride: u64) -> Result<Layout> {
        let mut raw = ptr::null_mut();
        let stride = i64::try_from(stride).unwrap_or(i64::MAX);
        // SAFETY: the pointer is to a local.
        let status =
            unsafe { sys::cublasLtMatrixLayoutCreate(&mut raw, dtype, rows, columns, stride) };
        check("cublasLtMatrixLayoutCreate", status)?;
        Ok(Layout(raw))
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: it is used nowhere else.
        let _ = unsafe { sys::cublasLtMatrixLayoutDestroy(self.0) };
    }
}

/// What an algorithm is to heed.
struct Wanted(sys::cublasLtMatmulPreference_t);

impl Wanted {
    fn new() -> Result<Wanted> {
        let mut raw = ptr::null_mut();
        // SAFETY: the pointer is to a local.
        let status = unsafe { sys::cublasLtMatmulPreferenceCreate(&mut raw) };
        check("cublasLtMatmulPreferenceCreate", status)?;
        Ok(Wanted(raw))
    }

    fn set<T>(
        &self,
        attribute: sys::cublasLtMatmulPreferenceAttributes_t,
        value: &T,
    ) -> Result<()> {
        let (from, size) = (ptr::from_ref(value).cast(), size_of::<T>());
        // SAFETY: the descriptor is alive; the value is copied, and is as long as is said.
        let status =
            unsafe { sys::cublasLtMatmulPreferenceSetAttribute(self.0, attribute, from, size) };
        check("cublasLtMatmulPreferenceSetAttribute", status)
    }
}

impl Drop for Wanted {
    fn drop(&mut self) {
        // SAFETY: it is used nowhere else.
        let _ = unsafe { sys::cublasLtMatmulPreferenceDestroy(self.0) };
    }
}
