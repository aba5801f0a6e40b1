// Instructions for matrices, element by element as their manual lays them out (PTX ISA, "Matrix
// multiply-accumulate operation using mma instruction", m16n8k16, and ldmatrix).

#include <cstring>

#include "shim.h"

namespace host {

namespace {

typedef unsigned short u16;

float widened(unsigned registers, unsigned half) {
    return __uint_as_float((registers >> 16 * half & 0xFFFF) << 16);
}

unsigned lane() { return threadIdx.x % 32; }

}  // namespace

// Lane i has of every matrix row i / 4, columns 2 (i % 4) and the next; turned: of its transpose.
void load_matrices(unsigned (&to)[4], const void* row, bool turned) {
    const Gift* rows = exchange(&row, sizeof row);
    const unsigned r = lane() / 4, c = lane() % 4 * 2;
    for (unsigned matrix = 0; matrix < 4; matrix++) {
        const auto element = [&](unsigned row, unsigned column) {
            const u16* start;
            std::memcpy(&start, rows[8 * matrix + row], sizeof start);
            return unsigned(start[column]);
        };
        to[matrix] = turned ? element(c, r) | element(c + 1, r) << 16
                            : element(r, c) | element(r, c + 1) << 16;
    }
}

// c[i] is of row i / 4 + 8 (i / 2) and column 2 (lane % 4) + i % 2. Of a, register 0 has rows 0 to
// 7 and columns 0 to 7, the next the rows below, the next two the columns right of those.
void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    const unsigned mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
    const Gift* all = exchange(mine, sizeof mine);
    const auto of = [&](unsigned lane, unsigned number) {
        unsigned value;
        std::memcpy(&value, all[lane] + 4 * number, sizeof value);
        return value;
    };
    const unsigned row = lane() / 4, column = lane() % 4 * 2;
    // Of two rows of a and two columns of b, each read once.
    float left[2][16], right[2][16];
    for (unsigned which = 0; which < 2; which++)
        for (unsigned pair = 0; pair < 8; pair++) {
            const unsigned of_a = of(row * 4 + pair % 4, which + pair / 4 * 2);
            const unsigned of_b = of((column + which) * 4 + pair % 4, 4 + pair / 4);
            for (unsigned half = 0; half < 2; half++) {
                left[which][2 * pair + half] = widened(of_a, half);
                right[which][2 * pair + half] = widened(of_b, half);
            }
        }
    for (unsigned i = 0; i < 4; i++)
        for (unsigned k = 0; k < 16; k++) c[i] += left[i / 2][k] * right[i % 2][k];
}

}  // namespace host
