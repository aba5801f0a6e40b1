//! Matrix products by cuBLASLt.
//!
//! Sums are f32, whatever the elements. The algorithm of a product is what the library's heuristic
//! proposes for its sizes, strides and the alignment of its operands, asked once and kept: the
//! same product takes the same way and gives the same bits, on every tile and in every plan.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::ptr;

use cudarc::cublaslt::sys::{self, cublasStatus_t};

use super::driver::{Allocation, Queue};
use super::launch::Argument;
use super::products::{Matrix, Product};
use crate::device::{Cause, Failure, Result};
use crate::profile::Dtype;

/// What the library may use beside the operands: what it asks for on large cards.
pub(super) const WORKSPACE_BYTES: u64 = 32 << 20;

/// cuBLASLt with its memory.
pub(super) struct Multiplier {
    handle: sys::cublasLtHandle_t,
    plans: RefCell<HashMap<Shape, Plan>>,
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
    /// Bytes to which `a`, `b`, what is added and `out` are aligned.
    aligned: [u32; 4],
}

/// A product as the library knows it.
struct Plan {
    product: Description,
    a: Layout,
    b: Layout,
    out: Layout,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

impl Multiplier {
    /// Opens the library.
    ///
    /// # Errors
    /// What the library says.
    pub fn new() -> Result<Multiplier> {
        let mut handle = ptr::null_mut();
        // SAFETY: the pointer is to a local; a context is current.
        check("cublasLtCreate", unsafe {
            sys::cublasLtCreate(&mut handle)
        })?;
        Ok(Multiplier {
            handle,
            plans: RefCell::default(),
        })
    }

    /// Queues a product. `address` gives the address of an operand.
    ///
    /// # Safety
    /// Operands lie, at their addresses, within allocations that outlive the queued work, and so
    /// does the workspace, which nothing else uses at that place of the stream.
    pub unsafe fn multiply(
        &self,
        queue: &Queue,
        product: &Product,
        address: impl Fn(Argument) -> Result<u64>,
        workspace: &Allocation,
    ) -> Result<()> {
        let [a, b, out] = [product.a.at, product.b.at, product.out].map(&address);
        let (a, b, out) = (a?, b?, out?);
        let added = product.added.map_or(Ok(out), &address)?;
        let shape = Shape {
            sizes: product.sizes,
            turned: [product.a.turned, product.b.turned],
            strides: [product.a.stride, product.b.stride, product.stride],
            dtypes: product.dtypes,
            adds: product.added.is_some(),
            bias: product.bias.is_some(),
            aligned: [a, b, added, out].map(alignment),
        };
        let mut plans = self.plans.borrow_mut();
        let plan = match plans.entry(shape) {
            std::collections::hash_map::Entry::Occupied(plan) => plan.into_mut(),
            std::collections::hash_map::Entry::Vacant(place) => {
                place.insert(self.plan(&shape, product)?)
            }
        };
        if let Some(bias) = product.bias.map(&address).transpose()? {
            let attribute = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER;
            plan.product.set(attribute, &bias)?;
        }
        let [factor, kept] = product.factors;
        let beta = if shape.adds { kept } else { 0.0 };
        let pointer = |address: u64| address as *const c_void;
        let status = sys::cublasLtMatmul(
            self.handle,
            plan.product.0,
            (&raw const factor).cast(),
            pointer(a),
            plan.a.0,
            pointer(b),
            plan.b.0,
            (&raw const beta).cast(),
            pointer(added),
            plan.out.0,
            out as *mut c_void,
            plan.out.0,
            &plan.algorithm,
            workspace.address as *mut c_void,
            workspace.bytes as usize,
            queue.raw().cast(),
        );
        check("cublasLtMatmul", status)
    }

    /// Describes a product and asks for its algorithm.
    fn plan(&self, shape: &Shape, product: &Product) -> Result<Plan> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        use sys::cublasLtMatmulPreferenceAttributes_t as Preference;
        let [m, n, k] = product.sizes;
        let described = Description::new()?;
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
        }
        let [of_a, of_out] = product.dtypes.map(|dtype| match dtype {
            Dtype::F32 => sys::cudaDataType::CUDA_R_32F,
            _ => sys::cudaDataType::CUDA_R_16BF,
        });
        // What is in memory, before it is turned.
        let layout = |matrix: &Matrix, rows: u64, columns: u64| {
            let (rows, columns) = match matrix.turned {
                true => (columns, rows),
                false => (rows, columns),
            };
            Layout::new(of_a, rows, columns, matrix.stride)
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
        let mut found = MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::zeroed();
        let mut count = 0;
        // SAFETY: all descriptors are alive; there is room for one answer.
        let status = unsafe {
            sys::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                described.0,
                a.0,
                b.0,
                out.0,
                out.0,
                wanted.0,
                1,
                found.as_mut_ptr(),
                &mut count,
            )
        };
        if count < 1 || status != cublasStatus_t::CUBLAS_STATUS_SUCCESS {
            return Err(Failure::new(Cause::Failed(format!(
                "cuBLASLt has no algorithm for a product of {m}×{k} and {k}×{n}: {status:?}"
            ))));
        }
        // SAFETY: zeros are a value of it, and the library has written an answer.
        let found = unsafe { found.assume_init() };
        Ok(Plan {
            product: described,
            a,
            b,
            out,
            algorithm: found.algo,
        })
    }
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
    fn new() -> Result<Description> {
        let mut raw = ptr::null_mut();
        let sums = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let scale = sys::cudaDataType::CUDA_R_32F;
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
