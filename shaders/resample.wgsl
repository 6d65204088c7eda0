// y[o, i, j] = sum over k of w[i, k] * x[o, s[i] + k, j], separable resizing along one axis (Keys 1981; Pillow's and PyTorch's windows).
// **Shapes** x [O, N, J] and y [O, M, J] vectors of four channels; table [M, 1 + K]: s[i], then K weights.
// **Grid** one invocation an output vector; workgroups of 64 fold from x into y.
// **Host** s[i] + K <= N, s does not fall; the first bound vector of either tensor is its base.
// **Numbers** sums in f32 in the order of k; with QUANTIZE the sum is rounded half up to a whole number in 0..255, as between 8-bit passes.

struct Params {
    begin: u32,   // first output vector of this launch
    end: u32,     // one past the last
    inner: u32,   // J
    input: u32,   // N
    output: u32,  // M
    taps: u32,    // K
    x_base: u32,
    y_base: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<XVec>;        // [O, N, J]
@group(0) @binding(2) var<storage, read> table: array<f32>;     // [M, 1 + K]
@group(0) @binding(3) var<storage, read_write> y: array<YVec>;  // [O, M, J]

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = params.begin + (group.y * groups.x + group.x) * 64u + lane;
    if (i >= params.end) {
        return;
    }
    let line = i / params.inner;
    let entry = line % params.output * (1u + params.taps);
    let first = line / params.output * params.input + u32(table[entry]);
    var at = first * params.inner + i % params.inner - params.x_base;
    var sum = vec4<f32>();
    for (var k = 1u; k <= params.taps; k++) {
        sum += table[entry + k] * load_x(x[at]);
        at += params.inner;
    }
    if (QUANTIZE == 1u) {
        sum = clamp(floor(sum + 0.5), vec4<f32>(0.0), vec4<f32>(255.0));
    }
    y[i - params.y_base] = store_y(sum);
}
