/* Sizes that kernels take as one argument: by pointer in C, by value in CUDA, and as NumPy records
 * of the same fields in Python (mpidl.backend.headers). */

/* A convolution of one to three dimensions; missing dimensions have size 1. Column kernels take the
 * channels [first, first + c) of the input: one group. */
typedef struct {
    long long n, d, h, w, channels;
    long long first, c, outputs;
    long long kd, kh, kw; /* size of the kernel */
    long long sd, sh, sw; /* stride */
    long long pd, ph, pw; /* zeros on both sides */
    long long dd, dh, dw; /* dilation */
    long long od, oh, ow; /* size of the output */
} conv_geometry;

/* Pooling over windows of k x k elements. */
typedef struct {
    long long n, h, w, c;
    long long k, stride, pad;
    long long oh, ow;
} pool_geometry;

/* Attention; strides: elements from one token to the next. */
typedef struct {
    long long n, heads, tq, tk, dim;
    long long q_stride, kv_stride;
} attention_geometry;

/* How results (od, oh, ow, c) are taken from samples (d, h, w, c), which are no smaller: moved
 * along each axis by low + a number below spread, what lies beyond its edge (EDGE_...), whether h
 * and w may be swapped (then oh == ow), and how often h and w are mirrored, in 2^-32. */
typedef struct {
    long long n, d, h, w, c;
    long long od, oh, ow;
    long long low_d, low_h, low_w;
    long long spread_d, spread_h, spread_w;
    long long edge_d, edge_h, edge_w;
    long long turn; /* 1: by quarters; 2: mirrored along each axis; 3: both */
    long long mirror_h, mirror_w;
} augment_geometry;
