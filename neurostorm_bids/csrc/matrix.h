/* What both kinds of matrix product share: a weight packed into panels of columns, and where the other operand lies. */
#ifndef NS_MATRIX_H
#define NS_MATRIX_H

#include <stdlib.h>

#include "simd.h"

#define UNIT (W == 16 ? 8 : W)    /* columns come in units of this many */
#define PER_VECTOR (W / UNIT)
#if W != 16 /* no half vectors there, `half` is always 0 */
typedef vf vhalf;
typedef vf_unaligned vhalf_unaligned;
INLINE vhalf h_fma(vhalf a, vhalf b, vhalf c) { return v_fma(a, b, c); }
INLINE vhalf h_low(vf x) { return x; }
#endif

typedef struct {
    int k, n, units;
    int paired; /* float32 only, 33 to 36 columns: two vectors, and a half vector for two k of the other four */
    float *panels, *bias; /* bias has matrix_width floats, or is NULL; bfloat16 panels hold two k in each float's place */
} matrix;

INLINE int padded(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }
INLINE int matrix_width(const matrix *w) { return w->units * UNIT; }

/* Units of the next panel when `left` remain; widths from 7 to 9 units spare a narrow last panel. */
INLINE int panel_units(int left)
{
    if (W == 16)
        return left <= 9 ? left : 6;
    return left < 3 ? left : 3;
}
INLINE int panel_stride(int units) { return (units + PER_VECTOR - 1) / PER_VECTOR * W; }

static float *aligned_floats(size_t count)
{
    void *p = NULL;
    if (posix_memalign(&p, 64, (count ? count : 1) * sizeof(float)))
        return NULL;
    memset(p, 0, (count ? count : 1) * sizeof(float));
    return p;
}

static void matrix_free(matrix *w)
{
    free(w->panels);
    free(w->bias);
}

/* Where the elements of A lie: a[row * stride + offset[k]], or offset == NULL for a[row * stride + k]. `ahead` is where, seen from
 * there, the next product's elements lie; gathered ones come from memory in pieces too short for a processor to foresee. */
typedef struct {
    const float *a;
    int64_t stride;
    const int64_t *offset;
    int64_t ahead;
} operand;

#endif
