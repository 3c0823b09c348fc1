/* exp, silu, softplus and GELU by polynomials and small tables, accurate to about one unit in the last place.
 *
 * 2^z is split as 2^k * 2^(i/S) * 2^r: adding `magic` rounds z to a multiple of 1/S and leaves k * S + i in the low bits, a
 * table held in registers gives 2^(i/S), a short polynomial 2^r. S is 16 (AVX-512), 8 (AVX2) or 1. The polynomials are exactly 1
 * at r = 0 and fitted to (2^r - 1) / r: of a decay near 1 it is the distance from 1 that adds up over hundreds of rows.
 * Beside matrix products in bfloat16, whose steps are 1/256, shorter polynomials do: errors of 1e-5, of decays 6e-5.
 */
#ifndef NS_VMATH_H
#define NS_VMATH_H

#include "simd.h"

#define LOG2_E 1.44269504f

/* Functions of several vectors take them through each step together: a chain as long as these fills a processor's queue of waiting
 * operations before it can see the independent ones of the next vector. BATCH is how many pay. */
#define BATCH (W == 16 ? 4 : 2)
#define EACH UNROLL(4) for (int i = 0; i < count; i++)

#if W == 16
#define EXP2_MAGIC 786432.0f /* 1.5 * 2^19: one unit in the last place is 1/16 */
#ifdef __AVX512BF16__
static const float EXP2_POWERS[] = {1.0f, 0.693174283f, 0.2402359f};
#else
static const float EXP2_POWERS[] = {1.0f, 0.69314718f, 0.240233552f, 0.0555057363f};
#endif
static const float EXP2_TABLE[16] __attribute__((aligned(64))) = {
    1.0f, 1.04427373f, 1.09050775f, 1.13878858f, 1.18920708f, 1.24185777f, 1.29683959f, 1.35425556f,
    1.41421354f, 1.47682619f, 1.54221082f, 1.61049032f, 1.68179286f, 1.75625217f, 1.8340081f, 1.91520655f,
};
/* p * 2^kf where kf = t - magic */
INLINE vf exp2_scaled(vf p, vf t, vf kf)
{
    vf entry = (vf)_mm512_permutexvar_ps((__m512i)t, _mm512_load_ps(EXP2_TABLE));
    return (vf)_mm512_scalef_ps((__m512)(entry * p), (__m512)kf);
}
#elif W == 8
#define EXP2_MAGIC 1572864.0f /* 1.5 * 2^20: one unit in the last place is 1/8 */
static const float EXP2_POWERS[] = {1.0f, 0.693147175f, 0.240254687f, 0.0555106194f};
/* bits of 2^(i/8) less i << 20, so that adding (8 k + i) << 20 gives 2^(k + i/8) */
static const int32_t EXP2_TABLE[8] __attribute__((aligned(32))) = {
    0x3f800000, 0x3f7b95c2, 0x3f7837f0, 0x3f75fed7, 0x3f7504f3, 0x3f75672a, 0x3f7744fd, 0x3f7ac0c7,
};
INLINE vf exp2_scaled(vf p, vf t, vf kf)
{
    (void)kf;
    vu entry = (vu)_mm256_permutevar8x32_epi32(*(const __m256i *)EXP2_TABLE, (__m256i)t);
    return (vf)(entry + ((vu)t << 20)) * p;
}
#else
#define EXP2_MAGIC 12582912.0f /* 1.5 * 2^23 */
static const float EXP2_POWERS[] = {1.0f,           0.693147188f,   0.240226511f,  0.0555035711f,
                                    9.61803077e-3f, 1.33908669e-3f, 1.54697349e-4f};
INLINE vf exp2_scaled(vf p, vf t, vf kf)
{
    (void)kf;
    /* a product, since adding to the exponent's bits would turn NaN into a number */
    return p * (vf)(((vu)t << 23) + 0x3f800000u);
}
#endif

/* p becomes the polynomial with these coefficients of x, lowest first */
INLINE void polynomials(const int count, const float *powers, const int degree, const vf *x, vf *p)
{
    EACH p[i] = v_set(powers[degree]);
    UNROLL(16)
    for (int k = degree - 1; k >= 0; k--)
        EACH p[i] = v_fma(p[i], x[i], v_set(powers[k]));
}
#define DEGREE(powers) ((int)(sizeof(powers) / sizeof(*(powers))) - 1)

/* 2^z, z may be anything up to 1e25; results below 2^-125 may come out as 2^-125 */
INLINE vf v_exp2(vf z)
{
    vf p;
#if W != 16
    z = v_min_keep_nan(v_set(128.0f), v_max_keep_nan(v_set(-125.0f), z));
#endif
    vf t = z + EXP2_MAGIC, kf = t - EXP2_MAGIC, r = z - kf;
    polynomials(1, EXP2_POWERS, DEGREE(EXP2_POWERS), &r, &p);
    return exp2_scaled(p, t, kf);
}

/* 2^(a * b) for the forward scan, and the same for eight lanes, bit by bit: `t` holds the rounded product and the table's index, `r`
 * what rounding took. Beyond |a * b| = 1e19 this may overflow, which the scan mends by what is not finite; the backward, which does
 * not, takes v_exp2. */
#ifdef __AVX512BF16__
/* 32 steps and a straight line: relative error up to 6e-5, up to 0.6 % of a decay's distance from 1 (a step of bfloat16: 0.8 %) */
static const float DECAY_TABLE[32] __attribute__((aligned(64))) = {
    1.0f, 1.02189715f, 1.04427378f, 1.0671404f, 1.09050773f, 1.11438674f, 1.13878863f, 1.16372486f,
    1.18920712f, 1.21524736f, 1.24185781f, 1.26905096f, 1.29683955f, 1.32523664f, 1.35425555f, 1.38390988f,
    1.41421356f, 1.44518081f, 1.47682615f, 1.50916443f, 1.54221083f, 1.57598085f, 1.61049033f, 1.64575548f,
    1.68179283f, 1.7186193f, 1.75625216f, 1.79470908f, 1.83400809f, 1.87416763f, 1.91520656f, 1.95714412f,
};
INLINE vf decay_entry(vf t)
{
    const __m512 low = _mm512_load_ps(DECAY_TABLE), high = _mm512_load_ps(DECAY_TABLE + 16);
    return (vf)_mm512_permutex2var_ps(low, (__m512i)t, high);
}
INLINE vf v_exp2_product(vf a, vf b)
{
    vf z = a * b, t = z + EXP2_MAGIC / 2, kf = t - EXP2_MAGIC / 2, r = z - kf, entry = decay_entry(t);
    return (vf)_mm512_scalef_ps((__m512)v_fma(entry, r * 0.69314718f, entry), (__m512)kf);
}
INLINE vhalf h_exp2_product(vhalf a, vhalf b)
{
    vhalf z = a * b, t = z + EXP2_MAGIC / 2, kf = t - EXP2_MAGIC / 2, r = z - kf;
    vhalf entry = h_low(decay_entry((vf)_mm512_castps256_ps512((__m256)t)));
    return (vhalf)_mm256_scalef_ps((__m256)h_fma(entry, r * 0.69314718f, entry), (__m256)kf);
}
#elif W == 16
INLINE vf v_exp2_product(vf a, vf b)
{
    vf t = v_fma(a, b, v_set(EXP2_MAGIC)), kf = t - EXP2_MAGIC, r = v_fms(a, b, kf), p; /* an operation less than v_exp2 */
    polynomials(1, EXP2_POWERS, DEGREE(EXP2_POWERS), &r, &p);
    return exp2_scaled(p, t, kf);
}
INLINE vhalf h_exp2_product(vhalf a, vhalf b)
{
    vhalf t = h_fma(a, b, h_set(EXP2_MAGIC)), kf = t - EXP2_MAGIC, r = h_fms(a, b, kf), p = h_set(EXP2_POWERS[DEGREE(EXP2_POWERS)]);
    const __m256 low = _mm256_load_ps(EXP2_TABLE), high = _mm256_load_ps(EXP2_TABLE + 8);
    vhalf entry = (vhalf)_mm256_permutex2var_ps(low, (__m256i)t, high);
    for (int k = DEGREE(EXP2_POWERS) - 1; k >= 0; k--)
        p = h_fma(p, r, h_set(EXP2_POWERS[k]));
    return (vhalf)_mm256_scalef_ps((__m256)(entry * p), (__m256)kf);
}
#else
INLINE vf v_exp2_product(vf a, vf b) { return v_exp2(a * b); }
#endif

/* e to the power x */
INLINE void exps(const int count, vf *x)
{
    vf t[BATCH], kf[BATCH], p[BATCH];
    EACH x[i] = v_max_keep_nan(v_set(W == 16 ? -105.0f : -86.0f), x[i]);
    EACH x[i] = v_min_keep_nan(v_set(89.0f), x[i]);
    EACH t[i] = v_fma(x[i], v_set(LOG2_E), v_set(EXP2_MAGIC));
    EACH kf[i] = t[i] - EXP2_MAGIC;
    /* log2(e) is rounded: relative error 1.3e-8 |x| of the result, all that is used is near 0 */
    EACH x[i] = v_fms(x[i], v_set(LOG2_E), kf[i]);
    polynomials(count, EXP2_POWERS, DEGREE(EXP2_POWERS), x, p);
#if W == 16
    EACH x[i] = exp2_scaled(p[i], t[i], kf[i]);
#else
    /* twice half the value: 2^128 has no float, and exp(89) must be infinite */
    EACH x[i] = exp2_scaled(p[i], (vf)((vu)t[i] - ((W == 8) ? 8u : 1u)), kf[i]);
    EACH x[i] = x[i] + x[i];
#endif
}

/* 1 + exp(-x) */
INLINE void one_plus_exps(const int count, const vf *x, vf *out)
{
    EACH out[i] = -x[i];
    exps(count, out);
    EACH out[i] = v_set(1.0f) + out[i];
}

INLINE void silus(const int count, vf *x)
{
    vf divisor[BATCH];
    one_plus_exps(count, x, divisor);
    EACH x[i] = x[i] / divisor[i];
}

INLINE void sigmoids(const int count, vf *x)
{
    vf divisor[BATCH];
    one_plus_exps(count, x, divisor);
    EACH x[i] = v_set(1.0f) / divisor[i];
}

/* log(1 + e) / e for e in [0, 1], relative error 3e-8 before rounding: deltas near zero keep all their digits */
#ifdef __AVX512BF16__
static const float LOG1P_POWERS[] = {0.999991598f,  -0.499361364f, 0.325206675f,
                                     -0.210048675f, 0.101222268f,  -0.0238691449f};
#else
static const float LOG1P_POWERS[] = {0.99999997f,  -0.499994931f, 0.333190968f,  -0.248429821f, 0.191060063f,
                                     -0.136632449f, 0.0782259416f, -0.0295052324f, 5.23269269e-3f};
#endif

INLINE void softpluses(const int count, vf *x)
{
    vf e[BATCH], p[BATCH];
    EACH e[i] = -v_abs(x[i]);
    exps(count, e);
    polynomials(count, LOG1P_POWERS, DEGREE(LOG1P_POWERS), e, p);
    EACH x[i] = v_max_keep_nan(v_zero(), x[i]) + e[i] * p[i];
}

/* GELU(x) = x * Phi(x) = x / 2 + |x| * E(|x|), where Phi is the normal distribution function and E = Phi - 1/2. */
#if W == 16
/* E around c = 3/16 * i, |r| <= 3/32: one polynomial of degree 4 for each i, error 3e-8 */
#ifdef __AVX512BF16__
#define GELU_DEGREE 2
#else
#define GELU_DEGREE 4
#endif
static const float GELU_TABLE[5][32] __attribute__((aligned(64))) = {
    { /* r^0 */
        0.0f, 0.0743656904f, 0.146169767f, 0.213112295f, 0.27337265f, 0.325749278f, 0.369705468f, 0.40532425f,
        0.43319279f, 0.454246372f, 0.469603628f, 0.480419934f, 0.487775534f, 0.492605388f, 0.495667547f, 0.497542113f,
        0.498650104f, 0.499282449f, 0.499630928f, 0.499816328f, 0.499911577f, 0.499958843f, 0.499981463f, 0.499991924f,
        0.499996603f, 0.499998629f, 0.499999464f, 0.499999791f, 0.499999911f, 0.49999997f, 0.5f, 0.5f,
    },
    { /* r^1 */
        0.398942173f, 0.391990691f, 0.371854931f, 0.340567499f, 0.301137447f, 0.257073998f, 0.21187678f, 0.168593332f,
        0.129517734f, 0.0960616171f, 0.0687863529f, 0.0475539342f, 0.0317396633f, 0.0204526633f, 0.0127241584f, 0.00764257787f,
        0.00443182187f, 0.00248116814f, 0.00134110148f, 0.000699839613f, 0.000352587405f, 0.000171500913f, 8.05373566e-05f, 3.65140113e-05f,
        1.59828014e-05f, 6.75425326e-06f, 2.75570596e-06f, 1.08547385e-06f, 4.12797249e-07f, 1.51560158e-07f, 5.37234683e-08f, 1.83854265e-08f,
    },
    { /* r^2 */
        8.74302714e-11f, -0.0367490537f, -0.0697226673f, -0.0957844406f, -0.112926371f, -0.120503247f, -0.11918053f, -0.110639267f,
        -0.0971382409f, -0.081051968f, -0.0644872189f, -0.0490400307f, -0.035707172f, -0.0249267351f, -0.0167005062f, -0.0107474178f,
        -0.00664776564f, -0.00395438634f, -0.00226312596f, -0.00124660076f, -0.000661108585f, -0.00033764675f, -0.000166110782f, -7.87347017e-05f,
        -3.59620208e-05f, -1.5830643e-05f, -6.71720818e-06f, -2.74768695e-06f, -1.08362894e-06f, -4.12069653e-07f, -1.51103663e-07f, -5.34351692e-08f,
    },
    { /* r^3 */
        -0.0664028153f, -0.0629349723f, -0.0531864874f, -0.0387642086f, -0.0219593905f, -0.00522358483f, 0.00932200905f, 0.0202384759f,
        0.026918415f, 0.0295289066f, 0.0288039725f, 0.0257700272f, 0.021485297f, 0.0168490931f, 0.01250285f, 0.00881458819f,
        0.00592129445f, 0.00379829574f, 0.00233041868f, 0.001369345f, 0.000771389983f, 0.000416948198f, 0.000216390617f, 0.0001078934f,
        5.17087938e-05f, 2.38302709e-05f, 1.05644085e-05f, 4.50660036e-06f, 1.85037402e-06f, 7.31444061e-07f, 2.7842367e-07f, 1.02074608e-07f,
    },
    { /* r^4 */
        -1.99002468e-08f, 0.00905665569f, 0.0165731497f, 0.0213718172f, 0.0228940044f, 0.0212640036f, 0.0172052383f, 0.0117735127f,
        0.00608122256f, 0.00104753219f, -0.00274947844f, -0.00510452455f, -0.00612193113f, -0.00610026252f, -0.00541002024f, -0.00439691218f,
        -0.00332558271f, -0.00236231252f, -0.00158540753f, -0.00100940175f, -0.000611504482f, -0.000353279436f, -0.000194971217f, -0.000102931917f,
        -5.20399299e-05f, -2.52187838e-05f, -1.17230493e-05f, -5.2307314e-06f, -2.24142786e-06f, -9.22850802e-07f, -3.65219279e-07f, -1.38981761e-07f,
    },
};
INLINE vf gelu_entry(int power, vi i)
{
    const __m512 low = _mm512_load_ps(GELU_TABLE[power]), high = _mm512_load_ps(GELU_TABLE[power] + 16);
    return (vf)_mm512_permutex2var_ps(low, (__m512i)i, high);
}
INLINE void half_erfs(const int count, vf *y)
{
    vf t[BATCH], p[BATCH];
    EACH y[i] = v_min_keep_nan(v_set(5.8f), y[i]);
    EACH t[i] = v_fma(y[i], v_set(16.0f / 3.0f), v_set(12582912.0f));
    EACH p[i] = t[i] - 12582912.0f;
    EACH y[i] = v_fma(p[i], v_set(-3.0f / 16.0f), y[i]);
    EACH p[i] = gelu_entry(GELU_DEGREE, (vi)t[i]);
    UNROLL(4)
    for (int k = GELU_DEGREE - 1; k >= 0; k--)
        EACH p[i] = v_fma(p[i], y[i], gelu_entry(k, (vi)t[i]));
    EACH y[i] = p[i];
}
#else
/* E(y) / y for y up to 5.5 in powers of 2 (y / 5.5)^2 - 1, error of E 1.3e-7 */
static const float GELU_POWERS[15] = {
    0.128551937f, -0.0641724751f, 0.0477369897f, -0.0387872667f, 0.032081741f, -0.0261124694f, 0.0202879833f, -0.0146713629f,
    0.0104686148f, -0.00767467542f, 0.00423639097f, -0.00122939674f, 0.00102383416f, -0.00136883077f, 0.000538081244f,
};
INLINE void half_erfs(const int count, vf *y)
{
    vf s[BATCH], p[BATCH];
    EACH y[i] = v_min_keep_nan(v_set(5.5f), y[i]);
    EACH s[i] = v_fma(y[i] * y[i], v_set(2.0f / 30.25f), v_set(-1.0f));
    polynomials(count, GELU_POWERS, DEGREE(GELU_POWERS), s, p);
    EACH y[i] = p[i] * y[i];
}
#endif
INLINE void gelus(const int count, vf *x)
{
    vf e[BATCH];
    EACH e[i] = v_abs(x[i]);
    half_erfs(count, e);
    EACH x[i] = v_fma(v_abs(x[i]), e[i], x[i] * 0.5f);
}

/* A function over x[0..n), n a multiple of W; `write(at, v)` says where values go */
#define DEFINE_OVER(name, batch, arguments, write)           \
    static void name arguments                               \
    {                                                        \
        int64_t at = 0;                                      \
        for (; at + BATCH * W <= n; at += BATCH * W) {       \
            vf v[BATCH];                                     \
            const int count = BATCH;                         \
            EACH v[i] = v_load(x + at + i * W);              \
            batch(BATCH, v);                                 \
            EACH write(at + i * W, v[i]);                    \
        }                                                    \
        for (; at < n; at += W) {                            \
            vf v = v_load(x + at);                           \
            batch(1, &v);                                    \
            write(at, v);                                    \
        }                                                    \
    }
#define IN_PLACE(at, v) v_store(x + (at), v)
DEFINE_OVER(exponential, exps, (int64_t n, float *x), IN_PLACE)
DEFINE_OVER(silu, silus, (int64_t n, float *x), IN_PLACE)
DEFINE_OVER(sigmoid, sigmoids, (int64_t n, float *x), IN_PLACE)
DEFINE_OVER(softplus, softpluses, (int64_t n, float *x), IN_PLACE)
#undef IN_PLACE

#endif
