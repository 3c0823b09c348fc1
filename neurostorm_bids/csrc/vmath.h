/* exp, silu, softplus and GELU by polynomials and small tables, accurate to about one unit in the last place.
 *
 * 2^z is split as 2^k * 2^(i/S) * 2^r: adding `magic` rounds z to a multiple of 1/S and leaves k * S + i in the low bits, a
 * table held in registers gives 2^(i/S), a short polynomial 2^r. S is 16 (AVX-512), 8 (AVX2) or 1. The polynomials are exactly 1
 * at r = 0 and fitted to (2^r - 1) / r: of a decay near 1 it is the distance from 1 that adds up over hundreds of rows.
 */
#ifndef NS_VMATH_H
#define NS_VMATH_H

#include "simd.h"

#define LOG2_E 1.44269504f

#if W == 16
#define EXP2_MAGIC 786432.0f /* 1.5 * 2^19: one unit in the last place is 1/16 */
static const float EXP2_TABLE[16] __attribute__((aligned(64))) = {
    1.0f, 1.04427373f, 1.09050775f, 1.13878858f, 1.18920708f, 1.24185777f, 1.29683959f, 1.35425556f,
    1.41421354f, 1.47682619f, 1.54221082f, 1.61049032f, 1.68179286f, 1.75625217f, 1.8340081f, 1.91520655f,
};
#define EXP2_C1 0.69314718f
#define EXP2_C2 0.240233552f
#define EXP2_C3 0.0555057363f
/* 2^(kf + r) where kf = t - magic */
INLINE vf exp2_parts(vf t, vf kf, vf r)
{
    vf entry = (vf)_mm512_permutexvar_ps((__m512i)t, _mm512_load_ps(EXP2_TABLE));
    vf p = v_fma(v_fma(v_fma(v_set(EXP2_C3), r, v_set(EXP2_C2)), r, v_set(EXP2_C1)), r, v_set(1.0f));
    return (vf)_mm512_scalef_ps((__m512)(entry * p), (__m512)kf);
}
#elif W == 8
#define EXP2_MAGIC 1572864.0f /* 1.5 * 2^20: one unit in the last place is 1/8 */
/* bits of 2^(i/8) less i << 20, so that adding (8 k + i) << 20 gives 2^(k + i/8) */
static const int32_t EXP2_TABLE[8] __attribute__((aligned(32))) = {
    0x3f800000, 0x3f7b95c2, 0x3f7837f0, 0x3f75fed7, 0x3f7504f3, 0x3f75672a, 0x3f7744fd, 0x3f7ac0c7,
};
INLINE vf exp2_parts(vf t, vf kf, vf r)
{
    (void)kf;
    vi entry = (vi)_mm256_permutevar8x32_epi32(*(const __m256i *)EXP2_TABLE, (__m256i)t);
    vf p = v_fma(v_fma(v_fma(v_set(0.0555106194f), r, v_set(0.240254687f)), r, v_set(0.693147175f)), r, v_set(1.0f));
    return (vf)(entry + ((vi)t << 20)) * p;
}
#else
#define EXP2_MAGIC 12582912.0f /* 1.5 * 2^23 */
INLINE vf exp2_parts(vf t, vf kf, vf r)
{
    (void)kf;
    vf p = v_fma(v_set(1.54697349e-4f), r, v_set(1.33908669e-3f));
    p = v_fma(p, r, v_set(9.61803077e-3f));
    p = v_fma(p, r, v_set(0.0555035711f));
    p = v_fma(p, r, v_set(0.240226511f));
    p = v_fma(p, r, v_set(0.693147188f));
    p = v_fma(p, r, v_set(1.0f));
    return (vf)((vi)p + ((vi)t << 23));
}
#endif

/* 2^(a * b) for the scan. |a * b| may be anything up to 1e25; results below 2^-125 may come out as 2^-125. */
INLINE vf v_exp2_product(vf a, vf b)
{
    vf z = a * b;
#if W != 16
    z = v_min_keep_nan(v_set(128.0f), v_max_keep_nan(v_set(-125.0f), z));
#endif
    vf t = z + EXP2_MAGIC;
    vf kf = t - EXP2_MAGIC;
    return exp2_parts(t, kf, z - kf);
}

#if W == 16
/* the same 2^(a * b) for eight lanes, bit by bit */
INLINE vhalf h_exp2_product(vhalf a, vhalf b)
{
    vhalf z = a * b, t = z + EXP2_MAGIC, kf = t - EXP2_MAGIC, r = z - kf;
    const __m256 low = _mm256_load_ps(EXP2_TABLE), high = _mm256_load_ps(EXP2_TABLE + 8);
    vhalf entry = (vhalf)_mm256_permutex2var_ps(low, (__m256i)t, high);
    vhalf p = h_fma(h_fma(h_fma(h_set(EXP2_C3), r, h_set(EXP2_C2)), r, h_set(EXP2_C1)), r, h_set(1.0f));
    return (vhalf)_mm256_scalef_ps((__m256)(entry * p), (__m256)kf);
}
#endif

INLINE vf v_exp(vf x)
{
#if W == 16
    x = v_min_keep_nan(v_set(89.0f), v_max_keep_nan(v_set(-105.0f), x));
#else
    x = v_min_keep_nan(v_set(89.0f), v_max_keep_nan(v_set(-86.0f), x));
#endif
    vf t = v_fma(x, v_set(LOG2_E), v_set(EXP2_MAGIC));
    vf kf = t - EXP2_MAGIC;
    vf r = v_fms(x, v_set(LOG2_E), kf); /* log2(e) rounded: relative error 1.3e-8 |x| of the result, all that is used is near 0 */
#if W == 16
    return exp2_parts(t, kf, r);
#else
    /* twice half the value: 2^128 has no float, and exp(89) must be infinite */
    vf half = exp2_parts((vf)((vi)t - ((W == 8) ? 8 : 1)), kf, r);
    return half + half;
#endif
}

INLINE vf v_silu(vf x) { return x / (v_set(1.0f) + v_exp(-x)); }

/* log(1 + e) for e in [0, 1], relative error 1e-8 before rounding: deltas near zero keep all their digits */
INLINE vf v_log1p_unit(vf e)
{
    vf p = v_fma(v_set(-3.24402415e-3f), e, v_set(0.0198514577f));
    p = v_fma(p, e, v_set(-0.0569595256f));
    p = v_fma(p, e, v_set(0.10603654f));
    p = v_fma(p, e, v_set(-0.15305592f));
    p = v_fma(p, e, v_set(0.196759391f));
    p = v_fma(p, e, v_set(-0.249541336f));
    p = v_fma(p, e, v_set(0.333299624f));
    p = v_fma(p, e, v_set(-0.499999024f));
    p = v_fma(p, e, v_set(0.999999995f));
    return p * e;
}

INLINE vf v_softplus(vf x)
{
    return v_max_keep_nan(v_zero(), x) + v_log1p_unit(v_exp(-v_abs(x)));
}

/* GELU(x) = x * Phi(x) = x / 2 + |x| * E(|x|), where Phi is the normal distribution function and E = Phi - 1/2. */
#if W == 16
/* E around c = 3/16 * i, |r| <= 3/32: one polynomial of degree 4 for each i, error 3e-8 */
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
INLINE vf half_erf(vf y)
{
    y = v_min_keep_nan(v_set(5.8f), y);
    vf t = v_fma(y, v_set(16.0f / 3.0f), v_set(12582912.0f));
    vf r = v_fma(t - 12582912.0f, v_set(-3.0f / 16.0f), y);
    vi i = (vi)t;
    vf p = v_fma(gelu_entry(4, i), r, gelu_entry(3, i));
    p = v_fma(p, r, gelu_entry(2, i));
    p = v_fma(p, r, gelu_entry(1, i));
    return v_fma(p, r, gelu_entry(0, i));
}
#else
/* E(y) / y for y up to 5.5 in powers of 2 (y / 5.5)^2 - 1, error of E 1.3e-7 */
static const float GELU_POWERS[15] = {
    0.128551937f, -0.0641724751f, 0.0477369897f, -0.0387872667f, 0.032081741f, -0.0261124694f, 0.0202879833f, -0.0146713629f,
    0.0104686148f, -0.00767467542f, 0.00423639097f, -0.00122939674f, 0.00102383416f, -0.00136883077f, 0.000538081244f,
};
INLINE vf half_erf(vf y)
{
    y = v_min_keep_nan(v_set(5.5f), y);
    vf s = v_fma(y * y, v_set(2.0f / 30.25f), v_set(-1.0f));
    vf p = v_set(GELU_POWERS[14]);
    UNROLL(14)
    for (int k = 13; k >= 0; k--)
        p = v_fma(p, s, v_set(GELU_POWERS[k]));
    return p * y;
}
#endif
INLINE vf v_gelu(vf x) { return v_fma(v_abs(x), half_erf(v_abs(x)), x * 0.5f); }

#endif
