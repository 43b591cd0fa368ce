use candle_core::{DType, Device, Result, Tensor, bail};

use super::{
    Arg, Buffer, GpuNf4, Grid, ToArg, launch,
    library::{self, GemmEx},
    memory,
};

/// Along which of their dimensions two matrices are multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// A (M,K), B (N,K): `y = x Wᵀ`.
    Nt,
    /// A (M,K), B (K,N): `dx = dy W`.
    Nn,
    /// A (K,M), B (K,N): `dW = dyᵀ x`. B is bf16.
    Tn,
}

/// The second matrix of a product.
#[derive(Clone, Copy)]
pub(crate) enum Operand<'a> {
    Bf16(&'a Tensor),
    Nf4(&'a GpuNf4),
}

/// `C = scale · (A B + A2 B2) + bias`, a matrix (M,N).
///
/// Every matrix is bf16 and its elements lie side by side; B may be NF4. The second pair is laid out as the first. The
/// bias (N) is f32. Of a matrix whose rows are no multiple of 8 values the kernels get a copy with zeros between. Sums are
/// f32, added in an order that depends on the sizes alone.
pub(crate) struct Product<'a> {
    pub(crate) form: Form,
    pub(crate) a: &'a Tensor,
    pub(crate) b: Operand<'a>,
    pub(crate) more: Option<[&'a Tensor; 2]>,
    pub(crate) bias: Option<&'a Tensor>,
    pub(crate) scale: f32,
}

/// M, N, K and the second pair's K.
#[derive(Clone, Copy)]
struct Sizes {
    m: usize,
    n: usize,
    k: usize,
    more_k: usize,
}

/// Rows up to which a product with a matrix is a matter of reading that.
const FEW_ROWS: usize = 16;
/// How many of them a block has, and how many of the matrix.
const FEW_ROWS_BLOCK: [usize; 2] = [8, 16];
/// Rows from which on a packed matrix is written out in bf16 first: its tiles would be unpacked too often.
const MANY_ROWS: usize = 512;
/// Rows and columns from which on a product of bf16 is the library's.
const LIBRARY_ROWS: usize = 256;
/// K of a step of a tile, and steps that a part has at least.
const STEP: usize = 32;
const MIN_STEPS: usize = 16;
/// Blocks that keep a large card busy: two for each of an H200's 132 multiprocessors.
const MANY_BLOCKS: usize = 264;

const TILE_THREADS: u32 = 128;
const SUM_THREADS: u32 = 256;

/// The side of a tile, and its shared memory; `gemm.cuh` has the same.
const LARGE: usize = 128;
const SMALL: usize = 64;

fn shared_bytes(side: usize) -> usize {
    3 * 2 * side * STEP * 2
}

const IS_F32: u32 = 1;
const ADDS: u32 = 2;

impl<'a> Product<'a> {
    pub(crate) fn new(form: Form, a: &'a Tensor, b: Operand<'a>) -> Self {
        Self { form, a, b, more: None, bias: None, scale: 1.0 }
    }

    /// In bf16 or f32. Errors: matrices that do not fit.
    pub(crate) fn run(&self, dtype: DType) -> Result<Buffer> {
        let Sizes { m, n, .. } = self.sizes()?;
        let c = Buffer::new(self.device(), (m, n), dtype)?;
        self.write(&c, dtype, false)?;
        Ok(c)
    }

    /// Adds C to a tensor (M,N), where it is: one that nobody else holds, as `Tensor::copy` makes it.
    pub(crate) fn add_to(&self, c: &Tensor) -> Result<()> {
        self.write(c, c.dtype(), true)
    }

    fn more_pair(&self) -> [Option<&'a Tensor>; 2] {
        [0, 1].map(|i| self.more.map(|more| more[i]))
    }

    fn device(&self) -> &Device {
        self.a.device()
    }

    fn write(&self, c: &dyn ToArg, dtype: DType, adds: bool) -> Result<()> {
        let sizes = self.sizes()?;
        let flags = if dtype == DType::F32 { IS_F32 } else { 0 } | if adds { ADDS } else { 0 };
        let a = with_whole_rows(self.a)?;
        let b = self.b.tensor().map(with_whole_rows).transpose()?;
        let more = match self.more {
            Some([a, b]) => Some([with_whole_rows(a)?, with_whole_rows(b)?]),
            None => None,
        };
        Product {
            a: &a,
            b: b.as_ref().map_or(self.b, Operand::Bf16),
            more: more.as_ref().map(|[a, b]| [a, b]),
            ..*self
        }
        .write_sizes(c, sizes, flags)
    }

    /// Chooses the kernel: the one place that does.
    fn write_sizes(&self, c: &dyn ToArg, sizes: Sizes, flags: u32) -> Result<()> {
        match self.b {
            _ if self.form == Form::Nt && sizes.m <= FEW_ROWS && self.b.is_for_few_rows(sizes.k) => {
                self.write_few_rows(c, sizes, flags)
            }
            Operand::Nf4(packed) if sizes.m >= MANY_ROWS => {
                let dense = packed.dequantize()?;
                Product { b: Operand::Bf16(&dense), ..*self }.write_sizes(c, sizes, flags)
            }
            Operand::Bf16(b) if library::is_on(self.device()) && sizes.m.min(sizes.n) >= LIBRARY_ROWS => {
                self.write_by_library(b, c, sizes, flags)
            }
            _ => self.write_tiles(c, sizes, flags),
        }
    }

    /// By cuBLAS, which alone has Hopper's and Blackwell's larger instructions: pair after pair, the bias as one more. It
    /// counts by columns, so it is given the transposes in turn.
    fn write_by_library(&self, b: &Tensor, c: &dyn ToArg, sizes: Sizes, flags: u32) -> Result<()> {
        let Sizes { m, n, k, more_k } = sizes;
        let Arg::Pointer(c) = c.to_arg()? else { bail!("a product is written to memory") };
        let multiply = |form, [a, b]: [&Tensor; 2], k: usize, scale: f32, adds: bool| {
            let transposes = match form {
                Form::Nt => [true, false],
                Form::Nn => [false, false],
                Form::Tn => [false, true],
            };
            let product = GemmEx {
                transposes,
                sizes: [n, m, k],
                addresses: [memory::address(b)?, memory::address(a)?, c],
                // There may be zeros behind their rows.
                strides: [b.dim(1)?, a.dim(1)?, n],
                scale,
                adds,
                is_f32: flags & IS_F32 != 0,
            };
            library::multiply(self.device(), &product)
        };
        multiply(self.form, [self.a, b], k, self.scale, flags & ADDS != 0)?;
        if let Some(more) = self.more {
            multiply(self.form, more, more_k, self.scale, true)?;
        }
        if let Some(bias) = self.bias {
            let ones = Tensor::ones((m, 1), DType::BF16, self.device())?;
            multiply(Form::Nn, [&ones, &bias.to_dtype(DType::BF16)?.unsqueeze(0)?], 1, 1.0, true)?;
        }
        Ok(())
    }

    fn write_few_rows(&self, c: &dyn ToArg, Sizes { m, n, k, more_k }: Sizes, flags: u32) -> Result<()> {
        let [rows, outputs] = FEW_ROWS_BLOCK;
        let grid = Grid::line(n.div_ceil(outputs) * m.div_ceil(rows), 256);
        let (name, grid) = match self.b {
            Operand::Bf16(_) => ("few_rows", grid),
            // A table of 32 KiB, and sums
            Operand::Nf4(_) => ("few_rows_nf4", grid.with_shared((32 << 10) + (4 << 10))),
        };
        let [more_a, more_b] = self.more_pair();
        let mut args: Vec<&dyn ToArg> = vec![&self.a];
        self.b.add_args(&mut args);
        args.extend([
            &more_a as &dyn ToArg,
            &more_b,
            &self.bias,
            c,
            &m,
            &n,
            &k,
            &more_k,
            &self.scale,
            &flags,
        ]);
        launch(self.device(), name, grid, &args)
    }

    fn write_tiles(&self, c: &dyn ToArg, sizes: Sizes, flags: u32) -> Result<()> {
        let Sizes { m, n, k, more_k } = sizes;
        let tiles = |side: usize| m.div_ceil(side) * n.div_ceil(side);
        let side = if m > SMALL && n > SMALL && 4 * tiles(LARGE) > MANY_BLOCKS { LARGE } else { SMALL };
        let steps = k.div_ceil(STEP) + more_k.div_ceil(STEP);
        // Twice as many of the small ones run at a time.
        let many_blocks = if side == LARGE { MANY_BLOCKS } else { 2 * MANY_BLOCKS };
        let max_parts = (many_blocks / tiles(side).max(1)).clamp(1, (steps / MIN_STEPS).max(1));
        let part_steps = steps.div_ceil(max_parts).max(1);
        let num_parts = steps.div_ceil(part_steps).max(1);
        let grid = Grid {
            blocks: [tiles(side) as u32, num_parts as u32, 1],
            threads: TILE_THREADS,
            shared_bytes: shared_bytes(side) as u32,
        };
        // Tiles are written in pairs of columns.
        let width = n.next_multiple_of(2);
        if num_parts == 1 && width == n {
            return self.launch_tiles((side, grid), self.bias, c, sizes, part_steps, self.scale, flags);
        }
        let parts = Buffer::new(self.device(), (num_parts, m, width), DType::F32)?;
        self.launch_tiles((side, grid), None, &parts, sizes, part_steps, 1.0, IS_F32)?;
        let grid = Grid::line((m * n).div_ceil(SUM_THREADS as usize), SUM_THREADS);
        let args: [&dyn ToArg; 8] = [&parts, &num_parts, &self.bias, c, &m, &n, &self.scale, &flags];
        launch(self.device(), "sum_parts", grid, &args)
    }

    fn launch_tiles(
        &self,
        (side, grid): (usize, Grid),
        bias: Option<&Tensor>,
        c: &dyn ToArg,
        Sizes { m, n, k, more_k }: Sizes,
        part_steps: usize,
        scale: f32,
        flags: u32,
    ) -> Result<()> {
        let is_large = side == LARGE;
        let name = match (self.form, self.b) {
            (Form::Nt, Operand::Bf16(_)) => ["product_nt_small", "product_nt_large"],
            (Form::Nn, Operand::Bf16(_)) => ["product_nn_small", "product_nn_large"],
            (Form::Tn, Operand::Bf16(_)) => ["product_tn_small", "product_tn_large"],
            (Form::Nt, Operand::Nf4(_)) => ["product_nt_nf4_small", "product_nt_nf4_large"],
            (Form::Nn, Operand::Nf4(_)) => ["product_nn_nf4_small", "product_nn_nf4_large"],
            (Form::Tn, Operand::Nf4(_)) => {
                bail!("a packed matrix has K across its rows in no product of this form")
            }
        }[usize::from(is_large)];
        let [more_a, more_b] = self.more_pair();
        let mut args: Vec<&dyn ToArg> = vec![&self.a];
        self.b.add_args(&mut args);
        args.extend([
            &more_a as &dyn ToArg,
            &more_b,
            &bias,
            c,
            &m,
            &n,
            &k,
            &more_k,
            &part_steps,
            &scale,
            &flags,
        ]);
        launch(self.device(), name, grid, &args)
    }

    /// M, N and K of all, which fit.
    fn sizes(&self) -> Result<Sizes> {
        let (a, b) = (self.a.dims2()?, self.b.shape()?);
        let of = |a: (usize, usize), b: (usize, usize)| match self.form {
            Form::Nt => (a.0, b.0, a.1, b.1),
            Form::Nn => (a.0, b.1, a.1, b.0),
            Form::Tn => (a.1, b.1, a.0, b.0),
        };
        let (m, n, k, b_k) = of(a, b);
        let (more_m, more_n, more_k, more_b_k) = match self.more {
            Some([a, b]) => of(a.dims2()?, b.dims2()?),
            None => (m, n, 0, 0),
        };
        let is_bias = self.bias.is_none_or(|bias| bias.dims() == [n] && bias.dtype() == DType::F32);
        let mut tensors = [Some(self.a), self.b.tensor()].into_iter().chain(self.more_pair()).flatten();
        if let Some(other) = tensors.find(|tensor| tensor.dtype() != DType::BF16) {
            bail!("a GPU's kernels multiply bf16, got {:?} {:?}", other.dtype(), other.dims())
        }
        if k != b_k || more_k != more_b_k || (m, n) != (more_m, more_n) || !is_bias {
            let [more_a, more_b] = self.more_pair().map(|tensor| tensor.map(Tensor::dims));
            let bias = self.bias.map(Tensor::dims);
            bail!("{:?}: {a:?} and {b:?}, {more_a:?} and {more_b:?}, bias {bias:?} do not fit", self.form)
        }
        Ok(Sizes { m, n, k, more_k })
    }
}

/// What a row of bf16 is a multiple of.
const ROW: usize = 8;

/// The matrix with zeros behind its rows, if they are no multiple of 8 values.
fn with_whole_rows(matrix: &Tensor) -> Result<Tensor> {
    let width = matrix.dim(1)?;
    if width.is_multiple_of(ROW) {
        return Ok(matrix.clone());
    }
    matrix.detach().pad_with_zeros(1, 0, width.next_multiple_of(ROW) - width)?.contiguous()
}

impl Operand<'_> {
    fn tensor(&self) -> Option<&Tensor> {
        match self {
            Self::Bf16(tensor) => Some(tensor),
            Self::Nf4(_) => None,
        }
    }

    /// Whether the kernel for few rows takes rows of this length: it reads whole blocks of NF4.
    fn is_for_few_rows(&self, width: usize) -> bool {
        match self {
            Self::Bf16(_) => true,
            Self::Nf4(_) => width.is_multiple_of(64),
        }
    }

    fn shape(&self) -> Result<(usize, usize)> {
        match self {
            Self::Bf16(tensor) => tensor.dims2(),
            Self::Nf4(packed) => Ok(packed.shape()),
        }
    }

    fn add_args<'s>(&'s self, args: &mut Vec<&'s dyn ToArg>) {
        match self {
            Self::Bf16(tensor) => args.push(tensor),
            Self::Nf4(packed) => packed.add_args(args),
        }
    }
}
