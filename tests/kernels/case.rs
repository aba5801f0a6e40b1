//! One comparison: operators on the CPU device, and their launches on the host-compiled kernels.

use std::collections::BTreeMap;
use std::path::Path;

use ebbtide::device::cpu::{CpuDevice, CpuOptions};
use ebbtide::device::cuda::launch::{
    batch, constants, launches, maps, tasks, Argument, BatchFacts, Buffer, Launch, Product, Task,
    MOST_SHARED_BYTES,
};
use ebbtide::device::{
    Device, Operator, Region, Reservation, RotaryTable, Space, StepParameters, StepResult, Stream,
};
use ebbtide::profile::Dtype;

use crate::library;
use crate::request::Request;

/// Numbers between −1 and 1 (splitmix64, Steele et al. 2014).
pub fn noise(seed: u64) -> impl FnMut() -> f32 {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    move || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 23) as f32) - 1.0
    }
}

/// What a case is compiled for and where its operands lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    pub dtype: Dtype,
    /// Every buffer begins one element behind a multiple of 16 bytes.
    pub askew: bool,
}

impl Setting {
    /// Whether a case that takes long is run in it: two settings of four are enough, one of each
    /// type and one of each alignment. Odd and even cases have different ones.
    pub fn serves_long(self, nth: u64) -> bool {
        (self.askew == (self.dtype == Dtype::F32)) == (nth % 2 == 0)
    }
}

/// Both types, aligned and not.
pub const SETTINGS: [Setting; 4] = [
    setting(Dtype::F32, false),
    setting(Dtype::F32, true),
    setting(Dtype::Bf16, false),
    setting(Dtype::Bf16, true),
];

const fn setting(dtype: Dtype, askew: bool) -> Setting {
    Setting { dtype, askew }
}

#[derive(Clone)]
struct Held {
    region: Region,
    dtype: Dtype,
    before: Vec<u8>,
    /// What kernels find there instead: the product that an operator begins with.
    product: Option<Vec<u8>>,
    /// Whether only a product writes it, which is not among the kernels.
    by_product: bool,
    /// Whether it is scratch memory, which is not compared.
    scratch: bool,
}

/// Operands, operators and what they are to be.
pub struct Case {
    pub setting: Setting,
    pub reservation: Reservation,
    pub step: StepParameters,
    pub operators: Vec<Operator>,
    /// Tokens and labels of the one micro-batch.
    pub batch: (Vec<u32>, Vec<i32>),
    /// How far results may be off, relative to the largest of a region; bf16 may be off by its own
    /// rounding too.
    pub tolerance: f32,
    /// Scratch memory that kernels find; what is used behind it is seen by the sanitizer.
    pub scratch: u64,
    /// What a block can have of shared memory.
    pub shared_bytes: u64,
    /// What is changed in the launches.
    pub change: Option<fn(&mut Vec<Launch>)>,
    next: Box<dyn FnMut() -> f32>,
    held: Vec<Held>,
    used: u64,
}

impl Case {
    pub fn new(setting: Setting, seed: u64) -> Case {
        Case {
            setting,
            reservation: Reservation {
                dtype: setting.dtype,
                arena_bytes: 0,
                slab_bytes: 0,
                events: 0,
                rows: 1,
                micro_batches: 1,
                loss_slots: 2,
                norm_slots: 0,
                carry_elements: 0,
                rotary: None,
            },
            step: StepParameters {
                step: 3,
                learning_rate: 0.01,
                beta2: 0.95,
                weight_decay: 0.1,
                loss_scale: 0.37,
                ..StepParameters::STILL
            },
            operators: Vec::new(),
            batch: (vec![0], vec![0]),
            tolerance: 2e-6,
            scratch: 128 << 10,
            shared_bytes: MOST_SHARED_BYTES,
            change: None,
            next: Box::new(noise(seed)),
            held: Vec::new(),
            used: 0,
        }
    }

    /// A number between −1 and 1.
    pub fn number(&mut self) -> f32 {
        (self.next)()
    }

    /// A whole number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        ((self.number().abs() * end as f32) as u64).min(end - 1)
    }

    // ---- operands -----------------------------------------------------------------------------

    fn hold(&mut self, dtype: Dtype, before: Vec<u8>) -> Region {
        let askew = if self.setting.askew { dtype.bytes() } else { 0 };
        let region = Region {
            space: Space::Device,
            offset_bytes: self.used + askew,
            bytes: before.len() as u64,
        };
        self.used = region.end().next_multiple_of(256);
        self.reservation.arena_bytes = self.used;
        self.held.push(Held {
            region,
            dtype,
            before,
            product: None,
            by_product: false,
            scratch: false,
        });
        region
    }

    /// Elements of the case's type.
    pub fn elements(&mut self, values: &[f32]) -> Region {
        let dtype = self.setting.dtype;
        self.hold(dtype, encode(values, dtype))
    }

    /// Random elements.
    pub fn random(&mut self, count: u64) -> Region {
        let values: Vec<f32> = (0..count).map(|_| self.number()).collect();
        self.elements(&values)
    }

    /// Elements that are NaNs.
    pub fn poisoned(&mut self, count: u64) -> Region {
        let dtype = self.setting.dtype;
        self.hold(dtype, vec![0xFF; (count * dtype.bytes()) as usize])
    }

    /// Random f32 of which `of` makes something.
    pub fn floats(&mut self, count: u64, of: impl Fn(f32) -> f32) -> Region {
        let values: Vec<f32> = (0..count).map(|_| of(self.number())).collect();
        self.hold(Dtype::F32, encode(&values, Dtype::F32))
    }

    /// Random bytes.
    pub fn bytes(&mut self, count: u64) -> Region {
        let bytes = (0..count).map(|_| self.below(256) as u8).collect();
        self.hold(Dtype::Fp8, bytes)
    }

    /// f32 that are NaNs.
    pub fn poisoned_floats(&mut self, count: u64) -> Region {
        self.hold(Dtype::F32, vec![0xFF; 4 * count as usize])
    }

    /// Says that kernels find in `region` what the CPU device finds in `other`.
    pub fn product(&mut self, region: Region, other: Region) {
        let product = self.of(other).before.clone();
        let place = self.held.iter_mut().find(|held| held.region == region);
        place.unwrap().product = Some(product);
    }

    /// Planned scratch memory, full of NaNs.
    pub fn workspace(&mut self, bytes: u64) -> Option<Region> {
        let region = (bytes > 0).then(|| self.hold(Dtype::F32, vec![0xFF; bytes as usize]))?;
        self.held.last_mut().unwrap().scratch = true;
        Some(region)
    }

    /// Says that a product writes `region`, and no kernel does.
    pub fn by_product(&mut self, region: Region) {
        let place = self.held.iter_mut().find(|held| held.region == region);
        place.unwrap().by_product = true;
    }

    fn of(&self, region: Region) -> &Held {
        self.held.iter().find(|held| held.region == region).unwrap()
    }

    /// Random tokens and labels, some ignored, of `rows` rows.
    pub fn load(&mut self, rows: u64, vocab: u64) {
        let tokens = (0..rows).map(|_| self.below(vocab) as u32).collect();
        let label = |case: &mut Case| match case.below(4) {
            0 => -100,
            _ => case.below(vocab) as i32,
        };
        self.batch = (tokens, (0..rows).map(|_| label(self)).collect());
        self.reservation.rows = rows;
    }

    /// A rotary table, stretched as YaRN's.
    pub fn rotary(&mut self, half: u64, positions: u64) {
        let angle = |i: u64| {
            let angle = (i / half) as f32 * 0.7f32.powi((i % half) as i32);
            (1.25 * angle.cos(), 1.25 * angle.sin())
        };
        let (cos, sin) = (0..half * positions).map(angle).unzip();
        self.reservation.rotary = Some(RotaryTable {
            half,
            positions,
            cos,
            sin,
        });
    }

    // ---- both ---------------------------------------------------------------------------------

    /// Runs both and compares everything in memory.
    pub fn check(&self, what: &str) {
        let Some(built) = library::build(true) else {
            return;
        };
        let (expected, result) = self.on_the_cpu();
        let mut planned = self.launches();
        if let Some(change) = self.change {
            change(&mut planned);
        }
        let memory = self.on_kernels(what, &built.run, &planned);
        self.compare(what, &expected, &memory.arena);
        self.compare_slots(what, result, &memory);
    }

    fn on_the_cpu(&self) -> (Vec<Vec<u8>>, StepResult) {
        let mut device = CpuDevice::new(CpuOptions::default());
        device.reserve(self.reservation.clone()).unwrap();
        for held in &self.held {
            device.write(held.region, &held.before).unwrap();
        }
        device.load_batch(0, &self.batch.0, &self.batch.1).unwrap();
        device.begin_step(&self.step).unwrap();
        for (number, operator) in self.operators.iter().enumerate() {
            device
                .launch(Stream::Compute, number as u32, operator)
                .unwrap();
        }
        let result = device.finish().unwrap();
        let read = |held: &Held| {
            let mut bytes = vec![0; held.before.len()];
            device.read(held.region, &mut bytes).unwrap();
            bytes
        };
        (self.held.iter().map(read).collect(), result)
    }

    /// Kernels and, of updates of tensors, the products between them.
    fn launches(&self) -> Vec<Launch> {
        let facts = [BatchFacts::new(&self.batch.0, &self.batch.1)];
        let all = |operator: &Operator| match operator {
            Operator::TensorUpdate { .. }
            | Operator::Project { .. }
            | Operator::CompressGradient { .. } => {
                let (held, step) = (&self.reservation, &self.step);
                let tasks = tasks(operator, held, step, self.scratch)
                    .unwrap()
                    .into_iter();
                tasks.map(|task| self.launch(task)).collect()
            }
            _ => launches(operator, &self.reservation, &facts, self.shared_bytes).unwrap(),
        };
        self.operators.iter().flat_map(all).collect()
    }

    /// A task as the host's kernels do it.
    fn launch(&self, task: Task) -> Launch {
        let product = match task {
            Task::Launch(launch) => return launch,
            Task::Multiply(product) => product,
        };
        let Product {
            sizes: [m, n, k],
            a,
            b,
            added,
            out,
            stride,
            dtypes: [of, to],
            factors: [factor, kept],
            bias: None,
            numbers: _,
        } = product
        else {
            panic!("no update adds a bias");
        };
        let numbers = [m, n, k, a.stride, b.stride, stride].map(Argument::U64);
        let wide = |dtype| dtype == Dtype::F32;
        let flags = [a.turned, b.turned, wide(of), wide(to)];
        let flags = flags.map(|flag| Argument::U32(flag.into()));
        let mut arguments = vec![a.at, b.at, added.unwrap_or(Argument::Null), out];
        arguments.extend(numbers.into_iter().chain(flags));
        arguments.extend([factor, kept].map(Argument::F32));
        Launch {
            kernel: match self.setting.dtype {
                Dtype::F32 => "host_product_f32",
                _ => "host_product_bf16",
            },
            grid: [(m * n).div_ceil(256) as u32, 1, 1],
            block: [256, 1, 1],
            shared_bytes: 0,
            arguments,
        }
    }

    /// The device's own buffers: bytes and what is in them, NaNs behind that.
    fn own(&self) -> BTreeMap<Buffer, (u64, Vec<u8>)> {
        let (tokens, labels) = &self.batch;
        let (order, place) = batch::token_order(tokens);
        let words = |words: &[u32]| words.iter().flat_map(|w| w.to_le_bytes()).collect();
        let table = |of: fn(&RotaryTable) -> &Vec<f32>| match &self.reservation.rotary {
            Some(table) => encode(of(table), Dtype::F32),
            None => Vec::new(),
        };
        let labels: Vec<u32> = labels.iter().map(|&label| label as u32).collect();
        let given: [(Buffer, Vec<u8>); 8] = [
            (Buffer::Tokens(0), words(tokens)),
            (Buffer::Labels(0), words(&labels)),
            (Buffer::Order(0), words(&order)),
            (Buffer::Place(0), words(&place)),
            (Buffer::Cos, table(|table| &table.cos)),
            (Buffer::Sin, table(|table| &table.sin)),
            (Buffer::Constants, constants(&self.step).to_vec()),
            (Buffer::Maps, words(&maps())),
        ];
        let given = given.map(|(buffer, bytes)| (buffer, (bytes.len() as u64, bytes)));
        let slots = |slots: u32| vec![0; 8 * slots as usize];
        let mut own = BTreeMap::from(given);
        for (buffer, slots) in [
            (Buffer::Losses, slots(self.reservation.loss_slots)),
            (Buffer::Squares, slots(self.reservation.norm_slots)),
        ] {
            own.insert(buffer, (slots.len() as u64, slots));
        }
        let carried = 4 * self.reservation.carry_elements;
        own.insert(Buffer::Carry, (carried, Vec::new()));
        own.insert(Buffer::Scratch, (self.scratch, Vec::new()));
        own
    }

    fn on_kernels(&self, what: &str, run: &Path, planned: &[Launch]) -> Memory {
        let own = self.own();
        let mut request = Request::of(planned, self.setting.askew);
        let of_arena = self.held.len();
        request.number((of_arena + own.len()) as u32);
        for held in &self.held {
            let given = held.product.as_ref().unwrap_or(&held.before);
            let askew = if self.setting.askew {
                held.dtype.bytes()
            } else {
                0
            };
            request.buffer(given.len() as u64, askew, given);
        }
        for (bytes, given) in own.values() {
            request.buffer(*bytes, 0, given);
        }
        request.number(planned.len() as u32);
        let address = |region: Region| {
            let inside = |held: &Held| {
                held.region.offset_bytes <= region.offset_bytes && region.end() <= held.region.end()
            };
            let at = self.held.iter().position(inside).unwrap();
            let offset = region.offset_bytes - self.held[at].region.offset_bytes;
            (0, at as u32, offset)
        };
        for launch in planned {
            request.launch(launch, |argument| match argument {
                Argument::Region(region) => address(region),
                Argument::Own(buffer, offset) => {
                    let at = own.keys().position(|&other| other == buffer).unwrap();
                    (0, (of_arena + at) as u32, offset)
                }
                Argument::Null => (1, 0, 0),
                Argument::U32(value) => (2, 0, value.into()),
                Argument::U64(value) => (3, 0, value),
                Argument::F32(value) => (2, 0, value.to_bits().into()),
                Argument::F64(value) => (3, 0, value.to_bits()),
            });
        }
        let result = request
            .output(run)
            .unwrap_or_else(|told| panic!("{what} of {:?}: {told}", self.setting));
        let mut rest = &result[..];
        let mut take = |bytes: u64| {
            let (bytes, behind) = rest.split_at(bytes as usize);
            rest = behind;
            bytes.to_vec()
        };
        let arena = self
            .held
            .iter()
            .map(|held| take(held.region.bytes))
            .collect();
        let mut slots = BTreeMap::new();
        for (buffer, (_, given)) in &own {
            let bytes = take(given.len() as u64);
            if matches!(buffer, Buffer::Losses | Buffer::Squares) {
                let slot = |slot: &[u8]| f64::from_le_bytes(slot.try_into().unwrap());
                slots.insert(*buffer, bytes.chunks_exact(8).map(slot).collect());
            }
        }
        Memory { arena, slots }
    }

    fn compare(&self, what: &str, expected: &[Vec<u8>], found: &[Vec<u8>]) {
        for (number, held) in self.held.iter().enumerate() {
            if held.scratch {
                continue;
            }
            if expected[number] == held.before || held.by_product {
                let given = held.product.as_ref().unwrap_or(&held.before);
                assert!(found[number] == *given, "{what}: operand {number} changed");
                continue;
            }
            let [a, b] = [&found[number], &expected[number]].map(|x| decode(x, held.dtype));
            let largest = b.iter().filter(|b| b.is_finite());
            let largest = largest.fold(0.0f32, |most, b| most.max(b.abs()));
            for (i, (&a, &b)) in a.iter().zip(&b).enumerate() {
                let rounding = match held.dtype {
                    Dtype::Bf16 => b.abs() / 128.0,
                    // The next code.
                    Dtype::Fp8 if self.tolerance > 0.0 => 1.0,
                    _ => 0.0,
                };
                let off = (a - b).abs();
                let near = off <= self.tolerance * largest + rounding;
                assert!(
                    near || (a.is_nan() && b.is_nan()) || a.to_bits() == b.to_bits(),
                    "{what}: element {i} of operand {number} is {a} for {b} ({:?})",
                    self.setting
                );
            }
        }
    }

    fn compare_slots(&self, what: &str, result: StepResult, memory: &Memory) {
        let loss: f64 = memory.slots[&Buffer::Losses].iter().sum();
        let loss = loss * self.step.loss_scale;
        let off = (loss - result.loss).abs();
        assert!(
            off <= 2e-6 * result.loss.abs() + 1e-9 || (loss.is_nan() && result.loss.is_nan()),
            "{what}: loss {loss} for {}",
            result.loss
        );
        let norm = memory.slots[&Buffer::Squares].iter().sum::<f64>().sqrt();
        let expected = result.gradient_norm.unwrap_or(norm);
        let off = (norm - expected).abs();
        assert!(
            off <= 1e-12 * expected.abs() || (norm.is_nan() && expected.is_nan()),
            "{what}: norm {norm} for {expected}"
        );
    }
}

struct Memory {
    arena: Vec<Vec<u8>>,
    slots: BTreeMap<Buffer, Vec<f64>>,
}

fn encode(values: &[f32], dtype: Dtype) -> Vec<u8> {
    let values = values.iter();
    match dtype {
        Dtype::F32 => values.flat_map(|v| v.to_le_bytes()).collect(),
        _ => values
            .flat_map(|&v| half::bf16::from_f32(v).to_le_bytes())
            .collect(),
    }
}

fn decode(bytes: &[u8], dtype: Dtype) -> Vec<f32> {
    let size = dtype.bytes() as usize;
    let decoded = |b: &[u8]| match *b {
        [a, b] => half::bf16::from_le_bytes([a, b]).to_f32(),
        [a, b, c, d] => f32::from_le_bytes([a, b, c, d]),
        [code] => code.into(),
        _ => unreachable!("elements have 1, 2 or 4 bytes"),
    };
    bytes.chunks_exact(size).map(decoded).collect()
}
