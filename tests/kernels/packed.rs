//! Numbers of 8 bits: kernels that round the same numbers in different ways give the same codes.
//! That these are the CPU device's is seen where whole copies and steps run (`tests/cuda_on_cpu`).

use ebbtide::device::cuda::launch::Launch;
use half::bf16;

use crate::case::noise;
use crate::library;
use crate::request::Request;

/// A matrix and its transpose, rounded by columns and by rows.
struct Turned {
    bf16: bool,
    rows: usize,
    columns: usize,
    format: u64,
}

impl Turned {
    fn encode(&self, values: &[f32]) -> Vec<u8> {
        let values = values.iter();
        match self.bf16 {
            true => values
                .flat_map(|&v| bf16::from_f32(v).to_le_bytes())
                .collect(),
            false => values.flat_map(|v| v.to_le_bytes()).collect(),
        }
    }

    fn check(&self) {
        let Some(built) = library::build(true) else {
            return;
        };
        let &Turned {
            rows,
            columns,
            format,
            ..
        } = self;
        let mut next = noise(rows as u64);
        let mut values: Vec<f32> = (0..rows * columns).map(|_| next()).collect();
        values[rows * columns - 1] = f32::NAN;
        values[..columns.min(3)].fill(0.0);
        let turned: Vec<f32> = (0..columns)
            .flat_map(|c| (0..rows).map(move |r| (r, c)))
            .map(|(r, c)| values[r * columns + c])
            .collect();
        let padded = rows.next_multiple_of(16);
        let made = columns.next_multiple_of(16);
        let parts = 3;
        let (matrix, turned) = (self.encode(&values), self.encode(&turned));
        let groups = columns * rows.div_ceil(128);
        let size = if self.bf16 { 2 } else { 4 };
        let nothing = |bytes: usize| vec![0xFF; bytes];
        let buffers = [
            matrix,
            turned,
            nothing(made * padded),
            nothing(4 * made),
            nothing(made * padded),
            nothing(4 * made),
            nothing(4 * parts * columns),
            nothing(rows * columns * size),
            nothing(rows * columns),
            nothing(4 * groups),
            nothing(rows * columns * size),
        ];
        let mut request = Request::new();
        request.number(buffers.len() as u32);
        for buffer in &buffers {
            request.buffer(buffer.len() as u64, 0, buffer);
        }
        let suffixed = |name: [&'static str; 2]| name[usize::from(self.bf16)];
        let of = |buffer: u32| (0, buffer, 0);
        let short = |value: usize| (2, 0, value as u64);
        let long = |value: usize| (3, 0, value as u64);
        let (format, tiles) = ((2, 0, format), |n: usize| n.div_ceil(64) as u32);
        let launches = [
            (
                suffixed(["column_most_f32", "column_most_bf16"]),
                [columns.div_ceil(256) as u32, parts as u32, 1],
                vec![of(0), of(6), short(rows), short(columns), long(columns)],
            ),
            (
                suffixed(["column_scales_f32", "column_scales_bf16"]),
                [made.div_ceil(256) as u32, 1, 1],
                vec![
                    of(6),
                    of(3),
                    short(parts),
                    short(columns),
                    short(made),
                    format,
                ],
            ),
            (
                suffixed(["round_columns_f32", "round_columns_bf16"]),
                [tiles(made), tiles(padded), 1],
                vec![
                    of(0),
                    of(3),
                    of(2),
                    short(rows),
                    short(padded),
                    short(columns),
                    short(made),
                    long(columns),
                    short(padded),
                    format,
                ],
            ),
            (
                suffixed(["round_rows_f32", "round_rows_bf16"]),
                [made as u32, 1, 1],
                vec![
                    of(1),
                    of(4),
                    of(5),
                    short(columns),
                    short(rows),
                    long(rows),
                    short(padded),
                    format,
                ],
            ),
            (
                suffixed(["round_weight_f32", "round_weight_bf16"]),
                [columns as u32, 1, 1],
                vec![of(1), of(7), short(rows), long(rows), format],
            ),
            (
                suffixed(["pack_f32", "pack_bf16"]),
                [groups.div_ceil(8) as u32, 1, 1],
                vec![of(1), of(8), of(9), long(groups), short(rows), format],
            ),
            (
                suffixed(["unpack_f32", "unpack_bf16"]),
                [groups.div_ceil(8) as u32, 1, 1],
                vec![of(8), of(9), of(10), long(groups), short(rows), format],
            ),
        ];
        request.number(launches.len() as u32);
        for (kernel, grid, parameters) in launches {
            let launch = Launch {
                kernel,
                grid,
                block: [256, 1, 1],
                shared_bytes: 0,
                arguments: Vec::new(),
            };
            request.launch_with(&launch, &parameters);
        }
        let what = format!("{rows} rows of {columns}");
        let output = request.output(&built.run);
        let output = output.unwrap_or_else(|told| panic!("{what}: {told}"));
        let mut rest = &output[..];
        let found = buffers.each_ref().map(|buffer| {
            let (bytes, behind) = rest.split_at(buffer.len());
            rest = behind;
            bytes
        });
        assert!(found[2] == found[4] && found[3] == found[5], "{what}");
        if rows > 128 {
            return;
        }
        // A row is one group.
        let of_rows = |bytes: &[u8]| -> Vec<u8> {
            let rows = bytes.chunks_exact(padded).take(columns);
            rows.flat_map(|row| &row[..self.rows]).copied().collect()
        };
        assert_eq!(of_rows(found[4]), found[8], "{what}");
        assert_eq!(found[5][..4 * columns], *found[9], "{what}");
        assert_eq!(found[7], found[10], "{what}");
        let zeros = found[4].chunks_exact(padded).take(columns);
        assert!(zeros.flat_map(|row| &row[rows..]).all(|&code| code == 0));
    }
}

#[test]
fn rows_columns_weights_and_groups_are_rounded_alike() {
    for bf16 in [false, true] {
        for (rows, columns) in [(1, 1), (5, 130), (128, 64), (70, 33), (129, 20), (300, 8)] {
            for format in [0, 1] {
                let turned = Turned {
                    bf16,
                    rows,
                    columns,
                    format,
                };
                turned.check();
            }
        }
    }
}
