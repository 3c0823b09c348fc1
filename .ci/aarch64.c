/* The compiled scan, forward and backward, against the plain recurrence in double precision; ends with 1 where they differ. */
#include "neurostorm.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BATCH = 3, LENGTH = 70, CHANNELS = 21, STATES = 16, ROWS = BATCH * LENGTH };

static float u[ROWS * CHANNELS], delta[ROWS * CHANNELS], z[ROWS * CHANNELS], b[ROWS * STATES], c[ROWS * STATES];
static float a[CHANNELS * STATES], skip[CHANNELS], bias[CHANNELS], y[ROWS * CHANNELS], grad_y[ROWS * CHANNELS];
static float grad[9][ROWS * CHANNELS];

static void fill(float *x, int n, double centre, double spread)
{
    for (int i = 0; i < n; i++)
        x[i] = (float)(centre + spread * (2.0 * rand() / RAND_MAX - 1));
}

static double expected(int window, int t_last, int channel)
{
    double h[STATES] = {0}, out = 0;
    for (int t = 0; t <= t_last; t++) {
        int row = window * LENGTH + t;
        double step = log1p(exp((double)delta[row * CHANNELS + channel] + bias[channel])), x = u[row * CHANNELS + channel];
        out = x * skip[channel];
        for (int n = 0; n < STATES; n++) {
            h[n] = exp(step * a[channel * STATES + n]) * h[n] + step * x * b[row * STATES + n];
            out += h[n] * c[row * STATES + n];
        }
    }
    double gate = z[(window * LENGTH + t_last) * CHANNELS + channel];
    return out * gate / (1 + exp(-gate));
}

static double worst_output(void)
{
    double worst = 0, largest = 0;
    for (int w = 0; w < BATCH; w++)
        for (int t = 0; t < LENGTH; t++)
            for (int i = 0; i < CHANNELS; i++) {
                double truth = expected(w, t, i), found = y[(w * LENGTH + t) * CHANNELS + i];
                worst = fmax(worst, fabs(truth - found)), largest = fmax(largest, fabs(truth));
            }
    return worst / largest;
}

/* d sum(grad_y y) / d u[0, 5, 3], by differences of the recurrence in double precision */
static double slope(void)
{
    double sums[2];
    float kept = u[5 * CHANNELS + 3];
    for (int side = 0; side < 2; side++) {
        u[5 * CHANNELS + 3] = kept + (side ? 0.01f : -0.01f);
        sums[side] = 0;
        for (int t = 5; t < LENGTH; t++)
            sums[side] += grad_y[t * CHANNELS + 3] * expected(0, t, 3);
    }
    double width = (double)(kept + 0.01f) - (double)(kept - 0.01f);
    u[5 * CHANNELS + 3] = kept;
    return (sums[1] - sums[0]) / width;
}

int main(void)
{
    const ns_kernels *kernels = ns_kernels_for(NULL);
    fill(u, ROWS * CHANNELS, 0, 1), fill(delta, ROWS * CHANNELS, -3, 2), fill(z, ROWS * CHANNELS, 0, 2);
    fill(b, ROWS * STATES, 0, 1), fill(c, ROWS * STATES, 0, 1), fill(a, CHANNELS * STATES, -4, 3.5);
    fill(skip, CHANNELS, 1, 0.1), fill(bias, CHANNELS, 0, 0.1), fill(grad_y, ROWS * CHANNELS, 0, 1);
    float *starts = malloc(sizeof(float) * (size_t)kernels->scan_starts(BATCH, LENGTH, CHANNELS, STATES));
    ns_scan scan = {BATCH, LENGTH, CHANNELS, STATES, u, delta, a, b, c, skip, z, bias, y, starts};
    ns_scan_gradients to = {grad_y, grad[0], grad[1], grad[2], grad[3], grad[4], grad[5], grad[6], grad[7]};
    if (kernels->scan_forward(&scan, 1) || kernels->scan_backward(&scan, &to, 1))
        return 2;
    double one = worst_output(), by_differences = slope(), found = grad[0][5 * CHANNELS + 3];
    static float again[ROWS * CHANNELS];
    memcpy(again, y, sizeof y);
    if (kernels->scan_forward(&scan, 2))
        return 2;
    int same = !memcmp(again, y, sizeof y);
    printf("%s kernels: output within %.1e of the largest, a gradient %.6f against %.6f, two threads %s\n", kernels->isa, one, found,
           by_differences, same ? "bit-identical" : "DIFFER");
    return !(one < 3e-6 && fabs(found - by_differences) < 1e-4 * fmax(1, fabs(by_differences)) && same);
}
