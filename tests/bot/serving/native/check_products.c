/* Products of the kernels beside float64, and their float16 numbers, as a program of its own: it can run under an emulator of another processor. */
#include "kernels.c"

#include <stdio.h>
#include <stdlib.h>

static uint32_t state = 1;

static uint32_t next_bits(void)
{
    state = state * 1664525u + 1013904223u;
    return state >> 8;
}

static float next_float(void)
{
    return next_bits() / 16777216.0f - 0.5f;
}

static float bf16_value(uint16_t bits)
{
    const uint32_t word = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &word, sizeof value);
    return value;
}

static double weight(const Linear *l, size_t at)
{
    const uint8_t *bytes = l->data;
    if (l->kind == NF4)
        return (double)CODE[at % 2 ? bytes[at / 2] & 15 : bytes[at / 2] >> 4] * l->scales[at / BLOCK];
    return l->kind == BF16 ? bf16_value(((const uint16_t *)l->data)[at]) : ((const float *)l->data)[at];
}

static void fill(void *data, int kind, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (kind == F32)
            ((float *)data)[i] = next_float();
        else if (kind == BF16) /* a finite number below 2 */
            ((uint16_t *)data)[i] = (next_bits() & 0x80ffu) | 0x3f00u;
        else
            ((uint8_t *)data)[i / 2] = next_bits();
}

/* The largest error of `rows` rows, relative to the largest output. */
static double error_of(int kind, int in, int out, int rows, int fast)
{
    const size_t count = (size_t)in * out;
    void *data = malloc(count * sizeof(float));
    float *scales = malloc(count / BLOCK * sizeof(float) + 1), *x = malloc(sizeof(float) * in * rows);
    float *y = malloc(sizeof(float) * out * rows), *room = malloc(sizeof(float) * in * (rows + 8));
    fill(data, kind, count);
    fill(scales, F32, count / BLOCK);
    fill(x, F32, (size_t)in * rows);
    const Linear l = {data, scales, NULL, kind, in, out, fast};
    strop_linear(&l, x, rows, y, room, 1);
    double worst = 0, largest = 0;
    for (int r = 0; r < rows; r++)
        for (int o = 0; o < out; o++) {
            double expected = 0;
            for (int i = 0; i < in; i++)
                expected += weight(&l, (size_t)o * in + i) * x[(size_t)r * in + i];
            worst = fmax(worst, fabs(expected - y[(size_t)r * out + o]));
            largest = fmax(largest, fabs(expected));
        }
    free(data), free(scales), free(x), free(y), free(room);
    return worst / largest;
}

/* The largest error of eight float16 numbers at a time, and of those between two of them as they are stored. */
static double error_of_halves(void)
{
    double worst = 0;
    for (int first = 0; first < 0x7c00; first += 8)
        for (int sign = 0; sign < 2; sign++) {
            uint16_t halves[8], stored[8];
            float values[8], between[8];
            for (int i = 0; i < 8; i++)
                halves[i] = (first + i) | sign << 15;
            *(f8 *)values = widen_halves(halves);
            store_cached(stored, 0, values, 8, 1);
            for (int i = 0; i < 8; i++) {
                const int fraction = (first + i) & 1023, exponent = (first + i) >> 10;
                const double size = exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24);
                worst = fmax(worst, fabs(values[i] - (sign ? -size : size)));
                worst = fmax(worst, stored[i] != halves[i]);
                /* Halfway to the next: the even one. */
                const double half_step = ldexp(1, exponent ? exponent - 26 : -25);
                between[i] = (sign ? -1 : 1) * (float)(size + half_step);
            }
            store_cached(stored, 0, between, 8, 1);
            for (int i = 0; i < 8 && first + i < 0x7bff; i++)
                worst = fmax(worst, stored[i] != halves[i] + (halves[i] & 1));
        }
    return worst;
}

int main(void)
{
    static const int shapes[][2] = {{64, 16}, {576, 34}, {1536, 16}}, rows[] = {1, 2, 3, 4, 5, 17};
    double worst = error_of_halves();
    for (int s = 0; s < 3; s++)
        for (int r = 0; r < 6; r++)
            for (int kind = F32; kind <= NF4; kind++)
                for (int fast = 0; fast < 2; fast++)
                    worst = fmax(worst, error_of(kind, shapes[s][0], shapes[s][1], rows[r], fast));
    printf("%g\n", worst);
    return 0;
}
