//! A graph as cuDNN's own descriptors, and its execution plan.
//!
//! Everything that a plan was made of lives as long as the plan. For tests a plan can be made for a
//! device that is described and not there ([`For::Properties`]).

use std::ffi::{c_char, c_void};
use std::ptr;

use cudarc::cudnn::sys::{
    cudnnBackendAttributeName_t as Attribute, cudnnBackendAttributeType_t as AttributeType,
    cudnnBackendDescriptorType_t as DescriptorType, cudnnBackendHeurMode_t as HeuristicMode,
    cudnnDataType_t as DataType, cudnnPointwiseMode_t as PointwiseMode,
    cudnnReduceTensorOp_t as ReduceOperation,
};

use super::graph::{Graph, Kind, Operation, Pointwise, Tensor, Type};
use super::library::{Library, Raw};

type Result<T> = std::result::Result<T, String>;

/// Bytes that addresses of tensors are multiples of.
pub(super) const ALIGNMENT: i64 = 16;

/// Which device a plan is for.
#[derive(Clone, Copy)]
pub(super) enum For<'a> {
    /// The one that a handle was made for.
    Handle(Raw),
    /// One that is described in JSON.
    Properties(&'a str),
}

/// A descriptor, given back when dropped.
struct Descriptor {
    library: &'static Library,
    raw: Raw,
}

impl Descriptor {
    fn new(library: &'static Library, kind: DescriptorType) -> Result<Descriptor> {
        let mut raw = ptr::null_mut();
        // SAFETY: the pointer is to a local.
        let status = unsafe { (library.describe)(kind, &mut raw) };
        library.check("cudnnBackendCreateDescriptor", status)?;
        Ok(Descriptor { library, raw })
    }

    /// Sets an attribute to values, whose type is as is said.
    fn set<T>(&self, name: Attribute, kind: AttributeType, values: &[T]) -> Result<()> {
        let (from, count) = (values.as_ptr().cast(), values.len() as i64);
        // SAFETY: the descriptor is alive; the values are copied, and are as many as is said.
        let status = unsafe { (self.library.set)(self.raw, name, kind, count, from) };
        let failed = |error| format!("{error}, of {name:?}");
        let call = "cudnnBackendSetAttribute";
        self.library.check(call, status).map_err(failed)
    }

    fn numbers(&self, name: Attribute, values: &[i64]) -> Result<()> {
        self.set(name, AttributeType::CUDNN_TYPE_INT64, values)
    }

    fn choice(&self, name: Attribute, value: bool) -> Result<()> {
        self.set(name, AttributeType::CUDNN_TYPE_BOOLEAN, &[value])
    }

    fn dtype(&self, name: Attribute, value: DataType) -> Result<()> {
        self.set(name, AttributeType::CUDNN_TYPE_DATA_TYPE, &[value])
    }

    fn descriptors(&self, name: Attribute, values: &[&Descriptor]) -> Result<()> {
        let raw: Vec<Raw> = values.iter().map(|value| value.raw).collect();
        self.set(name, AttributeType::CUDNN_TYPE_BACKEND_DESCRIPTOR, &raw)
    }

    fn handle(&self, name: Attribute, handle: Raw) -> Result<()> {
        self.set(name, AttributeType::CUDNN_TYPE_HANDLE, &[handle])
    }

    fn finalized(self) -> Result<Descriptor> {
        // SAFETY: the descriptor is alive.
        let status = unsafe { (self.library.finalize)(self.raw) };
        self.library.check("cudnnBackendFinalize", status)?;
        Ok(self)
    }

    /// Reads up to `room.len()` values of an attribute; how many there are.
    fn get<T>(&self, name: Attribute, kind: AttributeType, room: &mut [T]) -> Result<usize> {
        let mut found = 0;
        let count = room.len() as i64;
        // With an address it says how many it wrote, without one how many there are.
        let to = match room.is_empty() {
            true => ptr::null_mut(),
            false => room.as_mut_ptr().cast(),
        };
        // SAFETY: the descriptor is alive; there is room for as many values as is said.
        let status = unsafe { (self.library.get)(self.raw, name, kind, count, &mut found, to) };
        self.library.check("cudnnBackendGetAttribute", status)?;
        Ok(usize::try_from(found).unwrap_or(0))
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: it is used nowhere else.
        let _ = unsafe { (self.library.forget)(self.raw) };
    }
}

/// How a graph is executed.
pub(super) struct Plan {
    library: &'static Library,
    plan: Descriptor,
    /// Bytes that it needs beside its tensors.
    pub workspace: u64,
    /// Engines that the library proposed.
    pub proposed: usize,
    _parts: Vec<Descriptor>,
}

impl Plan {
    /// Takes the first of the library's proposals that makes a plan.
    ///
    /// # Errors
    /// What the library says, or that it proposes nothing.
    pub fn new(library: &'static Library, place: For<'_>, graph: &Graph) -> Result<Plan> {
        let mut parts = Vec::new();
        let properties = match place {
            For::Handle(_) => None,
            For::Properties(json) => Some(described(library, json)?),
        };
        let whole = whole(library, place, graph, &mut parts)?;
        let heuristic =
            Descriptor::new(library, DescriptorType::CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR)?;
        heuristic.descriptors(Attribute::CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, &[&whole])?;
        heuristic.set(
            Attribute::CUDNN_ATTR_ENGINEHEUR_MODE,
            AttributeType::CUDNN_TYPE_HEUR_MODE,
            &[HeuristicMode::CUDNN_HEUR_MODE_A],
        )?;
        if let Some(properties) = &properties {
            let name = Attribute::CUDNN_ATTR_ENGINEHEUR_DEVICEPROP;
            heuristic.descriptors(name, &[properties])?;
        }
        let heuristic = heuristic.finalized()?;
        let (name, kind) = (
            Attribute::CUDNN_ATTR_ENGINEHEUR_RESULTS,
            AttributeType::CUDNN_TYPE_BACKEND_DESCRIPTOR,
        );
        let count = heuristic.get::<Raw>(name, kind, &mut [])?;
        let engine = DescriptorType::CUDNN_BACKEND_ENGINECFG_DESCRIPTOR;
        let engines = (0..count).map(|_| Descriptor::new(library, engine));
        let engines: Vec<Descriptor> = engines.collect::<Result<_>>()?;
        let mut raw: Vec<Raw> = engines.iter().map(|engine| engine.raw).collect();
        let count = heuristic.get(name, kind, &mut raw)?;
        let mut refused = "it proposes no engine".to_owned();
        for engine in engines.into_iter().take(count) {
            match Plan::of(library, place, properties.as_ref(), &engine) {
                Ok((plan, workspace)) => {
                    parts.extend([whole, heuristic, engine]);
                    parts.extend(properties);
                    return Ok(Plan {
                        library,
                        plan,
                        workspace,
                        proposed: count,
                        _parts: parts,
                    });
                }
                Err(said) => refused = said,
            }
        }
        Err(refused)
    }

    /// The plan by one engine, and its workspace.
    fn of(
        library: &'static Library,
        place: For<'_>,
        properties: Option<&Descriptor>,
        engine: &Descriptor,
    ) -> Result<(Descriptor, u64)> {
        let kind = DescriptorType::CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR;
        let plan = Descriptor::new(library, kind)?;
        if let For::Handle(handle) = place {
            plan.handle(Attribute::CUDNN_ATTR_EXECUTION_PLAN_HANDLE, handle)?;
        }
        let name = Attribute::CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG;
        plan.descriptors(name, &[engine])?;
        if let Some(properties) = properties {
            let name = Attribute::CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP;
            plan.descriptors(name, &[properties])?;
        }
        let plan = plan.finalized()?;
        let mut bytes = [0i64];
        plan.get(
            Attribute::CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE,
            AttributeType::CUDNN_TYPE_INT64,
            &mut bytes,
        )?;
        let workspace = u64::try_from(bytes[0]).map_err(|_| "a workspace below 0".to_owned())?;
        Ok((plan, workspace))
    }

    /// Queues the plan on the handle's stream.
    ///
    /// # Errors
    /// What the library says.
    ///
    /// # Safety
    /// The addresses are those of the graph's tensors by their ids, on the device for those in
    /// memory and on the host for values; the former, and the workspace of [`Plan::workspace`]
    /// bytes, outlive the queued work.
    pub unsafe fn execute(
        &self,
        handle: Raw,
        tensors: &[(i64, *mut c_void)],
        workspace: *mut c_void,
    ) -> Result<()> {
        let kind = DescriptorType::CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR;
        let pack = Descriptor::new(self.library, kind)?;
        let (ids, addresses): (Vec<i64>, Vec<*mut c_void>) = tensors.iter().copied().unzip();
        pack.numbers(Attribute::CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, &ids)?;
        let pointer = AttributeType::CUDNN_TYPE_VOID_PTR;
        let name = Attribute::CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS;
        pack.set(name, pointer, &addresses)?;
        let name = Attribute::CUDNN_ATTR_VARIANT_PACK_WORKSPACE;
        pack.set(name, pointer, &[workspace])?;
        let pack = pack.finalized()?;
        let status = (self.library.execute)(handle, self.plan.raw, pack.raw);
        self.library.check("cudnnBackendExecute", status)
    }
}

/// A device that is not there.
fn described(library: &'static Library, json: &str) -> Result<Descriptor> {
    let properties = Descriptor::new(library, DescriptorType::CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR)?;
    let text: Vec<c_char> = json.bytes().map(|byte| byte as c_char).collect();
    let name = Attribute::CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION;
    properties.set(name, AttributeType::CUDNN_TYPE_CHAR, &text)?;
    properties.finalized()
}

/// The graph; what it is made of goes to `parts`.
fn whole(
    library: &'static Library,
    place: For<'_>,
    graph: &Graph,
    parts: &mut Vec<Descriptor>,
) -> Result<Descriptor> {
    let tensors = graph.tensors.iter().map(|tensor| made(library, tensor));
    let tensors: Vec<Descriptor> = tensors.collect::<Result<_>>()?;
    let mut operations = Vec::new();
    for operation in &graph.operations {
        let (how, operation) = computed(library, operation, &tensors)?;
        parts.extend(how);
        operations.push(operation);
    }
    let kind = DescriptorType::CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR;
    let whole = Descriptor::new(library, kind)?;
    let all: Vec<&Descriptor> = operations.iter().collect();
    whole.descriptors(Attribute::CUDNN_ATTR_OPERATIONGRAPH_OPS, &all)?;
    if let For::Handle(handle) = place {
        whole.handle(Attribute::CUDNN_ATTR_OPERATIONGRAPH_HANDLE, handle)?;
    }
    let whole = whole.finalized()?;
    parts.extend(tensors);
    parts.extend(operations);
    Ok(whole)
}

fn made(library: &'static Library, tensor: &Tensor) -> Result<Descriptor> {
    let made = Descriptor::new(library, DescriptorType::CUDNN_BACKEND_TENSOR_DESCRIPTOR)?;
    made.numbers(Attribute::CUDNN_ATTR_TENSOR_UNIQUE_ID, &[tensor.id])?;
    let dtype = match tensor.dtype {
        Type::Bf16 => DataType::CUDNN_DATA_BFLOAT16,
        Type::F32 => DataType::CUDNN_DATA_FLOAT,
        Type::I32 => DataType::CUDNN_DATA_INT32,
        Type::Bool => DataType::CUDNN_DATA_BOOLEAN,
    };
    made.dtype(Attribute::CUDNN_ATTR_TENSOR_DATA_TYPE, dtype)?;
    made.numbers(Attribute::CUDNN_ATTR_TENSOR_DIMENSIONS, &tensor.dims)?;
    made.numbers(Attribute::CUDNN_ATTR_TENSOR_STRIDES, &tensor.strides)?;
    made.numbers(Attribute::CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, &[ALIGNMENT])?;
    let (is_virtual, is_value) = (tensor.kind == Kind::Virtual, tensor.kind == Kind::Value);
    made.choice(Attribute::CUDNN_ATTR_TENSOR_IS_VIRTUAL, is_virtual)?;
    made.choice(Attribute::CUDNN_ATTR_TENSOR_IS_BY_VALUE, is_value)?;
    made.finalized()
}

/// An operation, and how it computes where that is a descriptor of its own.
fn computed(
    library: &'static Library,
    operation: &Operation,
    tensors: &[Descriptor],
) -> Result<(Option<Descriptor>, Descriptor)> {
    let new = |kind| Descriptor::new(library, kind);
    let (how, made, operands) = match *operation {
        Operation::Matmul { a, b, to } => {
            let how = new(DescriptorType::CUDNN_BACKEND_MATMUL_DESCRIPTOR)?;
            let sums = DataType::CUDNN_DATA_FLOAT;
            how.dtype(Attribute::CUDNN_ATTR_MATMUL_COMP_TYPE, sums)?;
            let how = how.finalized()?;
            let made = new(DescriptorType::CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR)?;
            made.descriptors(Attribute::CUDNN_ATTR_OPERATION_MATMUL_DESC, &[&how])?;
            let operands = vec![
                (Attribute::CUDNN_ATTR_OPERATION_MATMUL_ADESC, a),
                (Attribute::CUDNN_ATTR_OPERATION_MATMUL_BDESC, b),
                (Attribute::CUDNN_ATTR_OPERATION_MATMUL_CDESC, to),
            ];
            (Some(how), made, operands)
        }
        Operation::Pointwise { mode, x, b, t, to } => {
            let how = pointwise(library, mode)?;
            let made = new(DescriptorType::CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR)?;
            let name = Attribute::CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR;
            made.descriptors(name, &[&how])?;
            let mut operands = vec![(Attribute::CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x)];
            operands.extend(b.map(|b| (Attribute::CUDNN_ATTR_OPERATION_POINTWISE_BDESC, b)));
            operands.extend(t.map(|t| (Attribute::CUDNN_ATTR_OPERATION_POINTWISE_TDESC, t)));
            operands.push((Attribute::CUDNN_ATTR_OPERATION_POINTWISE_YDESC, to));
            (Some(how), made, operands)
        }
        Operation::Reduction { largest, x, to } => {
            let how = new(DescriptorType::CUDNN_BACKEND_REDUCTION_DESCRIPTOR)?;
            let operation = match largest {
                true => ReduceOperation::CUDNN_REDUCE_TENSOR_MAX,
                false => ReduceOperation::CUDNN_REDUCE_TENSOR_ADD,
            };
            how.set(
                Attribute::CUDNN_ATTR_REDUCTION_OPERATOR,
                AttributeType::CUDNN_TYPE_REDUCTION_OPERATOR_TYPE,
                &[operation],
            )?;
            let sums = DataType::CUDNN_DATA_FLOAT;
            how.dtype(Attribute::CUDNN_ATTR_REDUCTION_COMP_TYPE, sums)?;
            let how = how.finalized()?;
            let made = new(DescriptorType::CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR)?;
            made.descriptors(Attribute::CUDNN_ATTR_OPERATION_REDUCTION_DESC, &[&how])?;
            let operands = vec![
                (Attribute::CUDNN_ATTR_OPERATION_REDUCTION_XDESC, x),
                (Attribute::CUDNN_ATTR_OPERATION_REDUCTION_YDESC, to),
            ];
            (Some(how), made, operands)
        }
        Operation::Reshape { x, to } => {
            let made = new(DescriptorType::CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR)?;
            let operands = vec![
                (Attribute::CUDNN_ATTR_OPERATION_RESHAPE_XDESC, x),
                (Attribute::CUDNN_ATTR_OPERATION_RESHAPE_YDESC, to),
            ];
            (None, made, operands)
        }
    };
    for (name, tensor) in operands {
        made.descriptors(name, &[&tensors[tensor]])?;
    }
    Ok((how, made.finalized()?))
}

fn pointwise(library: &'static Library, mode: Pointwise) -> Result<Descriptor> {
    use PointwiseMode as Mode;
    let how = Descriptor::new(library, DescriptorType::CUDNN_BACKEND_POINTWISE_DESCRIPTOR)?;
    let (value, precision) = match mode {
        Pointwise::Add => (Mode::CUDNN_POINTWISE_ADD, DataType::CUDNN_DATA_FLOAT),
        Pointwise::Mul => (Mode::CUDNN_POINTWISE_MUL, DataType::CUDNN_DATA_FLOAT),
        Pointwise::Sub => (Mode::CUDNN_POINTWISE_SUB, DataType::CUDNN_DATA_FLOAT),
        Pointwise::Div => (Mode::CUDNN_POINTWISE_DIV, DataType::CUDNN_DATA_FLOAT),
        Pointwise::Exp => (Mode::CUDNN_POINTWISE_EXP, DataType::CUDNN_DATA_FLOAT),
        Pointwise::Log => (Mode::CUDNN_POINTWISE_LOG, DataType::CUDNN_DATA_FLOAT),
        Pointwise::Identity => (Mode::CUDNN_POINTWISE_IDENTITY, DataType::CUDNN_DATA_FLOAT),
        Pointwise::Index(_) => (Mode::CUDNN_POINTWISE_GEN_INDEX, DataType::CUDNN_DATA_FLOAT),
        Pointwise::NotLess => (Mode::CUDNN_POINTWISE_CMP_GE, DataType::CUDNN_DATA_BOOLEAN),
        Pointwise::Select => (
            Mode::CUDNN_POINTWISE_BINARY_SELECT,
            DataType::CUDNN_DATA_FLOAT,
        ),
    };
    how.set(
        Attribute::CUDNN_ATTR_POINTWISE_MODE,
        AttributeType::CUDNN_TYPE_POINTWISE_MODE,
        &[value],
    )?;
    how.dtype(Attribute::CUDNN_ATTR_POINTWISE_MATH_PREC, precision)?;
    if let Pointwise::Index(dim) = mode {
        how.numbers(Attribute::CUDNN_ATTR_POINTWISE_AXIS, &[dim])?;
    }
    how.finalized()
}
