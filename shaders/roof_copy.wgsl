// y = x: how fast this adapter moves memory, the roof of every kernel that computes little (Williams et al. 2009, "Roofline").
// **Shapes** x, y [count] vectors of four f32.
// **Grid** one invocation a vector; workgroups of 64 fold from x into y.
// **Host** params.count bounds the vectors; x and y hold at least as many.
// **Numbers** none, the bits are moved.

struct Params {
    count: u32,
    pad0: u32,
    pad1: u32,
    pad2: u32,
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
    if (i < params.count) {
        y[i] = x[i];
    }
}
