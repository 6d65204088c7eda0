// y = x / sqrt(mean(x^2) + eps) * weight over the channels of each row (RMSNorm, arXiv:1910.07467; T5's LayerNorm).
// **Shapes** x, y [rows, C4]; weight [C4].
// **Grid** SPAN invocations a row, ROWS rows a workgroup, workgroups fold from x into y; entry and sums in rows_subgroup or rows_workgroup.
// **Host** SPAN * DEPTH >= C4; KEPT is DEPTH, or 1 for rows too long for registers; pad channels of x and weight are zero.
// **Numbers** squares are summed in f32, as T5 does it.

struct Params {
    begin: u32,     // first row of this launch
    end: u32,       // one past the last
    width: u32,     // C4
    channels: u32,  // C
    x_base: u32,
    y_base: u32,
    eps: f32,
    pad: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<XVec>;           // [rows, C4]
@group(0) @binding(2) var<storage, read> weight: array<vec4<f32>>; // [C4]
@group(0) @binding(3) var<storage, read_write> y: array<YVec>;     // [rows, C4]

fn vector(row: u32, column: u32) -> vec4<f32> {
    if (column < params.width) {
        return load_x(x[row * params.width + column - params.x_base]);
    }
    return vec4<f32>();
}

// Rows past the end compute the last row again, so that all invocations meet where the sums are made.
fn normalise(row: u32, lane: u32, slot: u32) {
    let source = min(row, params.end - 1u);
    var kept: array<vec4<f32>, KEPT>;
    var squares = vec4<f32>();
    for (var k = 0u; k < DEPTH; k++) {
        let v = vector(source, k * SPAN + lane);
        if (KEPT == DEPTH) {
            kept[k] = v;
        }
        squares += v * v;
    }
    let mean = total(dot(squares, vec4<f32>(1.0)), slot) / f32(params.channels);
    let scale = 1.0 / sqrt(mean + params.eps);
    if (row >= params.end) {
        return;
    }
    for (var k = 0u; k < DEPTH; k++) {
        let column = k * SPAN + lane;
        if (column < params.width) {
            var v: vec4<f32>;
            if (KEPT == DEPTH) {
                v = kept[k];
            } else {
                v = vector(source, column);
            }
            y[row * params.width + column - params.y_base] = store_y(v * scale * weight[column]);
        }
    }
}
