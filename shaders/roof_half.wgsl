// y = f applied `rounds` times UNROLLED times to x in halves, f(v) = v * 0.75 + 0.25: how fast this adapter multiplies and adds packed f16 (Williams et al. 2009).
// **Shapes** x, y [count] vectors of four f32.
// **Grid** one invocation a vector, which carries CHAINS independent chains in registers; workgroups of 64 fold from x into y.
// **Host** params.count bounds the vectors; x and y hold at least as many; x is small, so that the chains stay near 1.
// **Numbers** f16 in the chains, which end within a few ulps of f's fixed point 1, where a step is smaller than a rounding; the mean in f32.

struct Params {
    count: u32,
    rounds: u32,
    pad0: u32,
    pad1: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;        // [count]
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>;  // [count]

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = (group.y * groups.x + group.x) * 64u + lane;
    if (i >= params.count) {
        return;
    }
    var chains: array<vec4<f16>, CHAINS>;
    for (var k = 0u; k < CHAINS; k++) {
        chains[k] = vec4<f16>(x[i] + f32(k) / 8.0);
    }
    for (var round = 0u; round < params.rounds; round++) {
        for (var step = 0u; step < UNROLLED; step++) {
            for (var k = 0u; k < CHAINS; k++) {
                chains[k] = fma(chains[k], vec4<f16>(0.75h), vec4<f16>(0.25h));
            }
        }
    }
    var sum = vec4<f32>();
    for (var k = 0u; k < CHAINS; k++) {
        sum += vec4<f32>(chains[k]);
    }
    y[i] = sum / f32(CHAINS);
}
