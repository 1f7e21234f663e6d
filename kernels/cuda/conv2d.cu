// 2-D convolution, NHWC, around a matrix product by cuBLAS: columns of inputs before it, or their sum after it.

// columns[(n, oy, ox), (ky, kx, c)] = x[n, oy*stride + ky - pad, ox*stride + kx - pad, c], 0 outside.
extern "C" __global__ void im2col(const REAL *x, REAL *columns, i64 total, i64 height, i64 width, i64 channels, i64 kh, i64 kw,
                                  i64 stride, i64 pad, i64 out_height, i64 out_width) {
    FOR_EACH(i, total) {
        i64 rest = i;
        const i64 c = rest % channels; rest /= channels;
        const i64 kx = rest % kw; rest /= kw;
        const i64 ky = rest % kh; rest /= kh;
        const i64 ox = rest % out_width; rest /= out_width;
        const i64 oy = rest % out_height;
        const i64 n = rest / out_height;
        const i64 y = oy * stride + ky - pad, xx = ox * stride + kx - pad;
        const bool inside = y >= 0 && y < height && xx >= 0 && xx < width;
        columns[i] = inside ? x[((n * height + y) * width + xx) * channels + c] : REAL(0);
    }
}

// The transpose of im2col: dx[n, y, x, c] gathers every column element that was made from it; no atomics, one fixed order.
extern "C" __global__ void col2im(const REAL *columns, REAL *dx, i64 total, i64 height, i64 width, i64 channels, i64 kh, i64 kw,
                                  i64 stride, i64 pad, i64 out_height, i64 out_width) {
    FOR_EACH(i, total) {
        i64 rest = i;
        const i64 c = rest % channels; rest /= channels;
        const i64 x = rest % width; rest /= width;
        const i64 y = rest % height;
        const i64 n = rest / height;
        REAL sum = REAL(0);
        for (i64 ky = 0; ky < kh; ky++) {
            const i64 up = y + pad - ky;
            if (up < 0 || up % stride || up / stride >= out_height) continue;
            for (i64 kx = 0; kx < kw; kx++) {
                const i64 left = x + pad - kx;
                if (left < 0 || left % stride || left / stride >= out_width) continue;
                const i64 pixel = (n * out_height + up / stride) * out_width + left / stride;
                sum += columns[((pixel * kh + ky) * kw + kx) * channels + c];
            }
        }
        dx[i] = sum;
    }
}
