// y[b, i, j] = mean or maximum of x over a window of kernel_height x kernel_width (torch avg_pool2d, max_pool2d), x enlarged by nearest neighbour before.
// **Shapes** x [B, H, W, C4] as stored; y [B, OH, OW, C4]; the window's corner is stride * (i, j) - (pad_top, pad_left) in the picture of H * enlarge x W * enlarge.
// **Grid** one invocation an output vector; workgroups of 64 fold from x into y.
// **Host** every window holds a place of the picture; MODE 0 is the mean of the places inside, 1 the mean with the padding's zeros, 2 the maximum.
// **Numbers** f32; a mean is a sum in order, times the reciprocal of the count.

struct Params {
    begin: u32,   // first vector of this launch
    end: u32,     // one past the last
    width4: u32,  // C4
    height: u32,  // H * enlarge
    width: u32,   // W * enlarge
    out_height: u32,
    out_width: u32,
    kernel_height: u32,
    kernel_width: u32,
    stride_y: u32,
    stride_x: u32,
    pad_top: u32,
    pad_left: u32,
    enlarge: u32,
    x_base: u32,
    y_base: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<XVec>;        // [B, H, W, C4]
@group(0) @binding(2) var<storage, read_write> y: array<YVec>;  // [B, OH, OW, C4]

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let index = params.begin + (group.y * groups.x + group.x) * 64u + lane;
    if (index >= params.end) {
        return;
    }
    let column = index % params.width4;
    let row = index / params.width4;
    let out_x = row % params.out_width;
    let out_y = row / params.out_width % params.out_height;
    let image = row / params.out_width / params.out_height;
    // The window cut to the picture; coordinates are counted from the padding's corner.
    let top = max(out_y * params.stride_y, params.pad_top) - params.pad_top;
    let left = max(out_x * params.stride_x, params.pad_left) - params.pad_left;
    let bottom = min(out_y * params.stride_y + params.kernel_height - params.pad_top, params.height);
    let right = min(out_x * params.stride_x + params.kernel_width - params.pad_left, params.width);
    let stored_height = params.height / params.enlarge;
    let stored_width = params.width / params.enlarge;
    var sum = vec4<f32>(select(0.0, -3.402823e38, MODE == 2u));
    for (var i = top; i < bottom; i++) {
        let line = (image * stored_height + i / params.enlarge) * stored_width;
        for (var j = left; j < right; j++) {
            let v = load_x(x[(line + j / params.enlarge) * params.width4 + column - params.x_base]);
            sum = select(sum + v, max(sum, v), MODE == 2u);
        }
    }
    if (MODE == 0u) {
        sum *= 1.0 / f32((bottom - top) * (right - left));
    }
    if (MODE == 1u) {
        sum *= 1.0 / f32(params.kernel_height * params.kernel_width);
    }
    y[index - params.y_base] = store_y(sum);
}
