// c[i * 4 + j] += a[i] * b[j], `rounds` times 4 times, in registers alone: how fast this adapter multiplies cooperative matrices (Williams et al. 2009).
// **Shapes** a [2, SIZE, SIZE] and b [4, SIZE, SIZE] halves, c [groups, SLOTS, SIZE, SIZE] f32, all row-major.
// **Grid** every subgroup of every workgroup computes the same eight sums and stores them in its own eight slots of its workgroup's SLOTS.
// **Host** SIZE is 8 or 16 and among the adapter's sizes for f16 summed in f32; c has room for the subgroups of LANES invocations.
// **Numbers** f16 products summed in f32; of small whole numbers, so that every sum is exact up to 2^24.

alias MatA = coop_mat{SIZE}x{SIZE}<f16, A>;
alias MatB = coop_mat{SIZE}x{SIZE}<f16, B>;
alias MatC = coop_mat{SIZE}x{SIZE}<f32, C>;

struct Params {
    rounds: u32,
    pad0: u32,
    pad1: u32,
    pad2: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<f16>;        // [2, SIZE, SIZE]
@group(0) @binding(2) var<storage, read> b: array<f16>;        // [4, SIZE, SIZE]
@group(0) @binding(3) var<storage, read_write> c: array<f32>;  // [groups, SLOTS, SIZE, SIZE]

const SQUARE: u32 = SIZE * SIZE;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(subgroup_id) subgroup: u32) {
    let a0 = coopLoadT<MatA>(&a[0u * SQUARE], SIZE);
    let a1 = coopLoadT<MatA>(&a[1u * SQUARE], SIZE);
    let b0 = coopLoadT<MatB>(&b[0u * SQUARE], SIZE);
    let b1 = coopLoadT<MatB>(&b[1u * SQUARE], SIZE);
    let b2 = coopLoadT<MatB>(&b[2u * SQUARE], SIZE);
    let b3 = coopLoadT<MatB>(&b[3u * SQUARE], SIZE);
    var c00 = MatC();
    var c01 = MatC();
    var c02 = MatC();
    var c03 = MatC();
    var c10 = MatC();
    var c11 = MatC();
    var c12 = MatC();
    var c13 = MatC();
    for (var round = 0u; round < params.rounds; round++) {
        c00 = coopMultiplyAdd(a0, b0, c00);
        c01 = coopMultiplyAdd(a0, b1, c01);
        c02 = coopMultiplyAdd(a0, b2, c02);
        c03 = coopMultiplyAdd(a0, b3, c03);
        c10 = coopMultiplyAdd(a1, b0, c10);
        c11 = coopMultiplyAdd(a1, b1, c11);
        c12 = coopMultiplyAdd(a1, b2, c12);
        c13 = coopMultiplyAdd(a1, b3, c13);
        c00 = coopMultiplyAdd(a0, b0, c00);
        c01 = coopMultiplyAdd(a0, b1, c01);
        c02 = coopMultiplyAdd(a0, b2, c02);
        c03 = coopMultiplyAdd(a0, b3, c03);
        c10 = coopMultiplyAdd(a1, b0, c10);
        c11 = coopMultiplyAdd(a1, b1, c11);
        c12 = coopMultiplyAdd(a1, b2, c12);
        c13 = coopMultiplyAdd(a1, b3, c13);
        c00 = coopMultiplyAdd(a0, b0, c00);
        c01 = coopMultiplyAdd(a0, b1, c01);
        c02 = coopMultiplyAdd(a0, b2, c02);
        c03 = coopMultiplyAdd(a0, b3, c03);
        c10 = coopMultiplyAdd(a1, b0, c10);
        c11 = coopMultiplyAdd(a1, b1, c11);
        c12 = coopMultiplyAdd(a1, b2, c12);
        c13 = coopMultiplyAdd(a1, b3, c13);
        c00 = coopMultiplyAdd(a0, b0, c00);
        c01 = coopMultiplyAdd(a0, b1, c01);
        c02 = coopMultiplyAdd(a0, b2, c02);
        c03 = coopMultiplyAdd(a0, b3, c03);
        c10 = coopMultiplyAdd(a1, b0, c10);
        c11 = coopMultiplyAdd(a1, b1, c11);
        c12 = coopMultiplyAdd(a1, b2, c12);
        c13 = coopMultiplyAdd(a1, b3, c13);
    }
    let slot = group.x * SLOTS + subgroup * 8u;
    coopStoreT(c00, &c[(slot + 0u) * SQUARE], SIZE);
    coopStoreT(c01, &c[(slot + 1u) * SQUARE], SIZE);
    coopStoreT(c02, &c[(slot + 2u) * SQUARE], SIZE);
    coopStoreT(c03, &c[(slot + 3u) * SQUARE], SIZE);
    coopStoreT(c10, &c[(slot + 4u) * SQUARE], SIZE);
    coopStoreT(c11, &c[(slot + 5u) * SQUARE], SIZE);
    coopStoreT(c12, &c[(slot + 6u) * SQUARE], SIZE);
    coopStoreT(c13, &c[(slot + 7u) * SQUARE], SIZE);
}
