// y = act(scale_a * a + scale_b * b + shift), or act((scale_a * a + shift) * b); act is none, SiLU (arXiv:1702.03118), GELU with erf or quick GELU (arXiv:1606.08415), GELU by tanh, max(x, 0) or max(x, 0.2 x).
// **Shapes** a, b, y [rows, C4] vectors of four channels; b is absent (and bound to a) unless BINARY is 1 (sum) or 2 (product).
// **Grid** four vectors an invocation, 64 apart; workgroups of 64 fold from x into y.
// **Host** params.end bounds the vectors of this launch; bases are the first bound vector of each tensor.
// **Numbers** f32 throughout; erf by Abramowitz and Stegun 7.1.26 (absolute error 1.5e-7).

struct Params {
    begin: u32,    // first vector of this launch
    end: u32,      // one past the last
    width: u32,    // C4
    tail: u32,     // channels in a row's last vector, 1..4
    a_base: u32,
    b_base: u32,
    y_base: u32,
    pad: u32,
    scale_a: f32,
    scale_b: f32,
    shift: f32,
    pad1: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<AVec>;        // [rows, C4]
@group(0) @binding(2) var<storage, read> b: array<BVec>;        // [rows, C4]
@group(0) @binding(3) var<storage, read_write> y: array<YVec>;  // [rows, C4]

fn erf4(x: vec4<f32>) -> vec4<f32> {
    let t = 1.0 / (1.0 + 0.3275911 * abs(x));
    let p = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t;
    return sign(x) * (1.0 - p * exp(-x * x));
}

fn activate(x: vec4<f32>) -> vec4<f32> {
    switch ACTIVATION {
        case 1u: { return x / (1.0 + exp(-x)); }
        case 2u: { return 0.5 * x * (1.0 + erf4(x * 0.70710678)); }
        case 3u: { return x / (1.0 + exp(-1.702 * x)); }
        case 4u: { return x / (1.0 + exp(min(-1.5957691216057308 * (x + 0.044715 * x * x * x), vec4<f32>(80.0)))); }
        case 5u: { return max(x, vec4<f32>()); }
        case 6u: { return max(x, 0.2 * x); }
        default: { return x; }
    }
}

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let first = params.begin + (group.y * groups.x + group.x) * 256u + lane;
    // All loads before the first store, which a driver must not move them over.
    var sums: array<vec4<f32>, 4>;
    for (var k = 0u; k < 4u; k++) {
        let i = min(first + k * 64u, params.end - 1u);
        sums[k] = params.scale_a * load_a(a[i - params.a_base]) + params.shift;
        if (BINARY == 1u) {
            sums[k] += params.scale_b * load_b(b[i - params.b_base]);
        } else if (BINARY == 2u) {
            sums[k] *= load_b(b[i - params.b_base]);
        }
    }
    for (var k = 0u; k < 4u; k++) {
        let i = first + k * 64u;
        if (i < params.end) {
            var v = activate(sums[k]);
            if (params.tail < 4u && i % params.width == params.width - 1u) {
                v = select(vec4<f32>(), v, vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(params.tail));
            }
            y[i - params.y_base] = store_y(v);
        }
    }
}
