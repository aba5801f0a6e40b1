//! Tasks as they are put together: scratch memory, gradients in one piece, products row by row.

use super::super::super::super::{Failure, Result, StepParameters};
use super::super::operand::{blocks, kernel, launch, number, Operands, MOST_SQUARES};
use super::super::{Argument, Buffer, Matrix, Numbers, Product, Task};
use crate::device::tensors::{GradientBlock, TensorShape, TensorUpdate, EIGHT_BIT_BLOCK};
use crate::profile::Dtype;

/// All places in scratch memory are multiples of this.
const ALIGNMENT: u64 = 256;

/// Blocks that go over a matrix, about: many times what a card runs at once, and few enough that a
/// block finds what it is to know of its columns for many rows.
const BLOCKS: u64 = 8192;

/// Tasks in order, and the scratch memory that they use.
pub struct Sequence<'a> {
    pub operands: Operands<'a>,
    pub step: &'a StepParameters,
    pub tasks: Vec<Task>,
    /// The largest magnitude of a gradient's element, if they are cut to one.
    pub most: Option<f64>,
    used: u64,
    bytes: u64,
}

/// A gradient that lies in one piece.
#[derive(Clone, Copy, Debug)]
pub struct Gradient {
    /// Its first element.
    pub at: Argument,
    /// Elements from row to row.
    pub stride: u64,
    /// Whether it is of f32.
    pub summed: bool,
}

impl Gradient {
    /// One of f32 without a gap between rows.
    pub fn dense(at: Argument, columns: u64) -> Gradient {
        Gradient {
            at,
            stride: columns,
            summed: true,
        }
    }
}

/// A gradient as it is found.
#[derive(Clone, Copy)]
pub struct Given<'a> {
    pub shape: TensorShape,
    lies: Lies<'a>,
}

#[derive(Clone, Copy)]
enum Lies<'a> {
    /// In blocks of elements, which are added up.
    Blocks(&'a [GradientBlock]),
    /// In f32, without a gap.
    Whole(Argument),
}

impl<'a> Given<'a> {
    /// A tensor's.
    pub fn of(tensor: &'a TensorUpdate) -> Given<'a> {
        Given::in_blocks(tensor.rule.gradient_shape(tensor.shape), &tensor.gradient)
    }

    /// One in blocks.
    pub fn in_blocks(shape: TensorShape, blocks: &'a [GradientBlock]) -> Given<'a> {
        let lies = Lies::Blocks(blocks);
        Given { shape, lies }
    }

    /// One that was made in f32.
    pub fn whole(shape: TensorShape, at: Argument) -> Given<'a> {
        let lies = Lies::Whole(at);
        Given { shape, lies }
    }

    /// Whether it lies in one piece by itself.
    pub fn is_whole(self) -> bool {
        let Lies::Blocks(blocks) = self.lies else {
            return true;
        };
        let [block] = blocks else {
            return false;
        };
        (block.rows, block.columns) == (self.shape.rows, self.shape.columns)
    }
}

/// Rows and columns of a matrix.
#[derive(Clone, Copy, Debug)]
pub struct Area {
    pub row: u64,
    pub rows: u64,
    pub column: u64,
    pub columns: u64,
}

impl Area {
    /// All of them.
    pub fn of(shape: TensorShape) -> Area {
        Area {
            row: 0,
            rows: shape.rows,
            column: 0,
            columns: shape.columns,
        }
    }

    pub fn elements(&self) -> u64 {
        self.rows * self.columns
    }

    /// So many rows of it.
    pub fn part(self, first: u64, rows: u64) -> Area {
        let row = self.row + first;
        Area { row, rows, ..self }
    }

    /// Cut into areas of so many rows.
    pub fn by_rows(self, at_once: u64) -> impl Iterator<Item = Area> {
        let starts = (0..self.rows).step_by(at_once as usize);
        starts.map(move |start| self.part(start, at_once.min(self.rows - start)))
    }
}

impl<'a> Sequence<'a> {
    pub fn new(operands: Operands<'a>, step: &'a StepParameters, bytes: u64) -> Self {
        Sequence {
            operands,
            step,
            tasks: Vec::new(),
            most: step.clip_value,
            used: 0,
            bytes,
        }
    }

    /// The step as random numbers count it.
    pub fn epoch(&self) -> Argument {
        Argument::U32(self.step.step as u32)
    }

    // ---- scratch memory -----------------------------------------------------------------------

    /// How much is used now.
    pub fn mark(&self) -> u64 {
        self.used
    }

    /// Gives back what was taken since a mark.
    pub fn release(&mut self, mark: u64) {
        self.used = mark;
    }

    /// Bytes that are left.
    pub fn left(&self) -> u64 {
        self.bytes.saturating_sub(self.used)
    }

    /// Takes bytes.
    pub fn take(&mut self, bytes: u64) -> Result<Argument> {
        if bytes > self.left() {
            let (left, what) = (self.left(), "scratch memory for a tensor");
            return Err(Failure::refused(format!(
                "{bytes} bytes of {left} of {what}"
            )));
        }
        let at = self.used;
        self.used = (at + bytes).next_multiple_of(ALIGNMENT);
        Ok(Argument::Own(Buffer::Scratch, at))
    }

    /// How many of `rows` of `width` elements are taken at once where each needs bytes of `room`:
    /// all, or as many as have whole blocks of 8-bit moments.
    pub fn at_once(&self, room: u64, (rows, width): (u64, u64), bytes: u64) -> Result<u64> {
        let fit = room.saturating_sub(4 * ALIGNMENT) / bytes.max(1);
        let shared = 1 << width.trailing_zeros().min(EIGHT_BIT_BLOCK.trailing_zeros());
        let granule = match fit {
            // Products like their operands' starts in round places.
            EIGHT_BIT_BLOCK.. => EIGHT_BIT_BLOCK,
            _ => EIGHT_BIT_BLOCK / shared,
        };
        match fit / granule * granule {
            _ if fit >= rows => Ok(rows),
            0 => Err(Failure::refused(format!(
                "a tensor with rows that need {bytes} bytes of scratch memory each, of which \
                 {granule} have to fit into {room}"
            ))),
            some => Ok(some),
        }
    }

    // ---- kernels ------------------------------------------------------------------------------

    pub fn launch(
        &mut self,
        name: &'static str,
        grid: [u64; 3],
        threads: u32,
        arguments: Vec<Argument>,
    ) -> Result<()> {
        let launched = launch(name, grid, threads, 0, arguments)?;
        self.tasks.push(Task::Launch(launched));
        Ok(())
    }

    /// A launch over a matrix, four columns a thread.
    pub fn over(
        &mut self,
        name: &'static str,
        (rows, columns): (u64, u64),
        arguments: Vec<Argument>,
    ) -> Result<()> {
        let across = blocks(columns.div_ceil(4), 256, i32::MAX as u64);
        let down = (BLOCKS / across).min(rows).clamp(1, 65_535);
        self.launch(name, [across, down, 1], 256, arguments)
    }

    /// The sum of squares of a vector of elements, or of f32 where it is `summed`: its address.
    pub fn squares(&mut self, of: Argument, count: u64, summed: bool) -> Result<Argument> {
        let partials = self.take(8 * MOST_SQUARES)?;
        let (squares, parts) = self.operands.squares((of, summed), count, partials)?;
        self.tasks.push(Task::Launch(squares));
        self.sum(partials, parts)
    }

    /// The sum of f64 in `from`, of which there are so many: its address.
    pub fn sum(&mut self, from: Argument, count: u64) -> Result<Argument> {
        let out = self.take(8)?;
        let sum = self.operands.sum_doubles(from, count, out)?;
        self.tasks.push(Task::Launch(sum));
        Ok(out)
    }

    /// Partial sums of the squares of an update, which launches of [`Self::square`] add to.
    pub fn partials(&mut self) -> Result<Argument> {
        let partials = self.take(8 * MOST_SQUARES)?;
        self.zero(partials, 8 * MOST_SQUARES)?;
        Ok(partials)
    }

    /// A launch over a matrix, each of whose blocks adds to a partial sum.
    pub fn square(
        &mut self,
        name: &'static str,
        (rows, columns): (u64, u64),
        mut arguments: Vec<Argument>,
        partials: Argument,
    ) -> Result<()> {
        let across = blocks(columns.div_ceil(4), 256, MOST_SQUARES);
        let down = (MOST_SQUARES / across).min(rows);
        arguments.push(partials);
        self.launch(name, [across, down, 1], 256, arguments)
    }

    /// What [`Self::square`] has added up: its address.
    pub fn squared(&mut self, partials: Argument) -> Result<Argument> {
        self.sum(partials, MOST_SQUARES)
    }

    // ---- gradients ----------------------------------------------------------------------------

    /// All rows of a matrix of a gradient's elements, or as many at once as can be gathered.
    pub fn areas(&self, given: Given<'_>, shape: TensorShape) -> Result<Vec<Area>> {
        let TensorShape { rows, columns } = shape;
        let at_once = match given.is_whole() {
            true => rows,
            false => self.at_once(self.left(), (rows, columns), 4 * columns)?,
        };
        Ok(Area::of(shape).by_rows(at_once).collect())
    }

    /// An area of a gradient, in one piece: where it lies, or gathered in scratch memory.
    pub fn gradient(&mut self, given: Given<'_>, area: Area) -> Result<Gradient> {
        let stride = given.shape.columns;
        let first = area.row * stride + area.column;
        let (at, summed) = match given.lies {
            Lies::Whole(at) => (at.behind(4 * first), true),
            Lies::Blocks(blocks) if given.is_whole() => {
                let size = self.operands.size();
                let elements = (area.rows - 1) * stride + area.columns;
                let part = blocks[0].region.part(first * size, elements * size);
                (self.operands.elements(part, elements)?, false)
            }
            Lies::Blocks(blocks) => {
                let at = self.gathered(blocks, area)?;
                return Ok(Gradient::dense(at, area.columns));
            }
        };
        Ok(Gradient { at, stride, summed })
    }

    /// An area of a gradient, its blocks added up in f32.
    fn gathered(&mut self, blocks: &[GradientBlock], area: Area) -> Result<Argument> {
        let size = self.operands.size();
        let at = self.take(4 * area.elements())?;
        self.zero(at, 4 * area.elements())?;
        for block in blocks {
            let row = block.row.max(area.row);
            let row_end = (block.row + block.rows).min(area.row + area.rows);
            let column = block.column.max(area.column);
            let column_end = (block.column + block.columns).min(area.column + area.columns);
            if row >= row_end || column >= column_end {
                continue;
            }
            let (rows, columns) = (row_end - row, column_end - column);
            let first = (row - block.row) * block.columns + column - block.column;
            let elements = (rows - 1) * block.columns + columns;
            let part = block.region.part(first * size, elements * size);
            let part = self.operands.elements(part, elements)?;
            let to = at.behind(4 * ((row - area.row) * area.columns + column - area.column));
            self.gather(to, part, (rows, columns), (area.columns, block.columns))?;
        }
        Ok(at)
    }

    /// An area of a gradient in blocks as f32, without a gap between its rows, cut to the largest
    /// magnitude.
    pub fn dense(&mut self, given: Given<'_>, area: Area) -> Result<Argument> {
        let Lies::Blocks(lying) = given.lies else {
            return Err(Failure::refused("a gradient in f32 that is to be gathered"));
        };
        let at = self.gathered(lying, area)?;
        if let Some(most) = self.most {
            let count = Argument::U64(area.elements());
            let arguments = vec![at, count, Argument::F32(most as f32)];
            let grid = blocks(area.elements().div_ceil(4), 256, i32::MAX as u64);
            let name = kernel!(self.operands, "cut");
            self.launch(name, [grid, 1, 1], 256, arguments)?;
        }
        Ok(at)
    }

    // ---- types --------------------------------------------------------------------------------

    /// What elements are of.
    pub fn dtype(&self) -> Dtype {
        self.operands.reservation.dtype
    }

    /// A matrix of f32 as elements, without a gap between its rows.
    pub fn narrowed(
        &mut self,
        from: Argument,
        stride: u64,
        (rows, columns): (u64, u64),
    ) -> Result<Argument> {
        if self.dtype() == Dtype::F32 && stride == columns {
            return Ok(from);
        }
        let to = self.take(rows * columns * self.operands.size())?;
        self.narrow(from, stride, to, (rows, columns))?;
        Ok(to)
    }

    /// Writes a matrix of f32 as elements.
    pub fn narrow(
        &mut self,
        from: Argument,
        stride: u64,
        to: Argument,
        (rows, columns): (u64, u64),
    ) -> Result<()> {
        let arguments = vec![
            from,
            Argument::U64(stride),
            to,
            number(rows)?,
            number(columns)?,
        ];
        let name = kernel!(self.operands, "narrowed");
        self.over(name, (rows, columns), arguments)
    }

    /// Writes elements as f32.
    pub fn widen(&mut self, from: Argument, to: Argument, count: u64) -> Result<()> {
        self.zero(to, 4 * count)?;
        self.add(from, to, count)
    }

    /// Adds elements to f32.
    pub fn add(&mut self, from: Argument, to: Argument, count: u64) -> Result<()> {
        self.gather(to, from, (1, count), (count, count))
    }

    fn zero(&mut self, at: Argument, bytes: u64) -> Result<()> {
        let zero = self.operands.zero(at, bytes)?;
        self.tasks.push(Task::Launch(zero));
        Ok(())
    }

    /// Adds elements to f32; strides from row to row of these and of those.
    fn gather(
        &mut self,
        to: Argument,
        from: Argument,
        (rows, columns): (u64, u64),
        (to_stride, from_stride): (u64, u64),
    ) -> Result<()> {
        let arguments = vec![
            to,
            from,
            number(rows)?,
            number(columns)?,
            Argument::U64(to_stride),
            Argument::U64(from_stride),
        ];
        let name = kernel!(self.operands, "gather");
        self.over(name, (rows, columns), arguments)
    }

    // ---- weights ------------------------------------------------------------------------------

    /// An area of a tensor's weights: where the tensor begins, elements before the area, stride.
    pub fn part(&self, tensor: &TensorUpdate, area: Area) -> Result<Vec<Argument>> {
        let columns = tensor.shape.columns;
        Ok(vec![
            self.operands
                .elements(tensor.weight, tensor.shape.elements())?,
            Argument::U64(area.row * columns + area.column),
            Argument::U64(columns),
        ])
    }

    /// The size of an area, and which random numbers round its weights.
    pub fn sizes_and_draws(&self, tensor: &TensorUpdate, area: Area) -> Result<[Argument; 4]> {
        Ok([
            number(area.rows)?,
            number(area.columns)?,
            Argument::U64(tensor.key),
            self.epoch(),
        ])
    }

    // ---- products -----------------------------------------------------------------------------

    /// `x·y`, row by row: `[p × k] · [k × q]` for sizes `[p, q, k]`, of a type.
    pub fn multiply(
        &mut self,
        [p, q, k]: [u64; 3],
        (x, y): (Factor, Factor),
        of: Dtype,
    ) -> Making<'_> {
        // Columns first, everything is its own transpose: outᵀ = yᵀ·xᵀ.
        let product = Product {
            sizes: [q, p, k],
            a: y.matrix(),
            b: x.matrix(),
            added: None,
            bias: None,
            out: Argument::Null,
            stride: q,
            dtypes: [of; 2],
            factors: [1.0; 2],
            numbers: Numbers::Elements,
        };
        Making {
            product,
            tasks: &mut self.tasks,
        }
    }
}

/// A factor of a product: a matrix row by row, or its transpose.
#[derive(Clone, Copy)]
pub struct Factor {
    pub at: Argument,
    /// Elements from row to row in memory.
    pub stride: u64,
    /// Whether its transpose is what lies in memory.
    pub turned: bool,
}

impl Factor {
    fn matrix(self) -> Matrix {
        let Factor { at, stride, turned } = self;
        Matrix { at, stride, turned }
    }
}

/// A product that is not told yet where to go.
#[must_use]
pub struct Making<'a> {
    product: Product,
    tasks: &'a mut Vec<Task>,
}

impl Making<'_> {
    /// Times a number.
    pub fn factor(mut self, factor: f32) -> Self {
        self.product.factors[0] *= factor;
        self
    }

    /// Added to so many times what lies there, which has the result's stride and type.
    pub fn added_to(mut self, at: Argument, kept: f32) -> Self {
        self.product.added = Some(at);
        self.product.factors[1] = kept;
        self
    }

    /// Into memory; elements from row to row, and their type.
    pub fn to(mut self, out: Argument, stride: u64, dtype: Dtype) {
        (self.product.out, self.product.stride) = (out, stride);
        self.product.dtypes[1] = dtype;
        self.tasks.push(Task::Multiply(self.product));
    }
}
