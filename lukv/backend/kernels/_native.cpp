// Attention of one new query a query head over ragged sequences, on a CPU. native.py compiles this file and calls it
// with plain addresses: it includes nothing of torch or Python, so one build serves any version of both.
//
// The entries of a sequence are read in pieces of PIECE. A piece gives, for each query head of the group, its largest
// logit, the sum of its weights exp(logit - largest) and the weighted sum of its values; the pieces are then put
// together in order. So the result depends neither on the number of threads nor on the sequences beside one's own.
//
// Element<T> says how numbers of type T are read and multiplied. A further type is one more specialisation of it and
// one more line at the end of the file. Memory says how rows are stored: as such numbers, or packed in few bits. Packed
// rows are unpacked a tile at a time, into memory that stays in the first cache, so all that computes sees numbers.

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <type_traits>
#include <vector>

namespace {

// 64 bytes of numbers. Where registers are shorter the compiler uses several.
typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(64)));

constexpr int LANES = 16;      // floats in a vector
constexpr int PIECE = 512;     // entries
constexpr int TOGETHER = 4;    // entries whose logits are computed together
constexpr int ROWS = 4;        // query heads that are computed together, at most
constexpr int TILE = 32;       // entries that are unpacked together, and whose values are added before the sums go back
constexpr int ALONE = 1 << 21;  // products that one thread computes sooner than it wakes up others
constexpr int AHEAD = 16384;   // bytes of memory asked for before they are read
constexpr float LOWEST = -std::numeric_limits<float>::infinity();

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(Index, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(Index, a, b, ...) __builtin_shuffle(a, b, (Index){__VA_ARGS__})
#endif

template <class V, class T>
inline V read(const T* x) {
  V v;
  std::memcpy(&v, x, sizeof(V));
  return v;
}

template <class V, class T>
inline void write(T* x, V v) {
  std::memcpy(x, &v, sizeof(V));
}

template <class V, class T>
inline V read_some(const T* x, int count) {  // the rest is zero
  V v{};
  std::memcpy(&v, x, count * sizeof(T));
  return v;
}

// Ask for the 64 bytes that will be read `ahead` bytes after x. It may be an address behind the memory's end.
inline void expect(const void* x, int64_t ahead) { __builtin_prefetch((const char*)x + ahead, 0, 2); }

inline Floats splat(float x) { return (Floats)_mm512_set1_ps(x); }

// ---- numbers of a type -------------------------------------------------------------------------------------------

struct BFloat16 {
  uint16_t bits;
};

// Row: as many numbers as a vector holds. multiply_add(sums, a, b): adds their products to sums; which of the products
// share a lane does not matter to a scalar product.
//
// For sums over entries, PAIR neighbours are multiplied at once: weave() puts their rows into PAIR rows whose lanes
// belong to one column each, weights(p) is those of PAIR entries in every lane, and unweave() puts PAIR vectors of such
// sums into the order of the columns.
template <class T>
struct Element;

template <>
struct Element<float> {
  using Row = Floats;
  static constexpr int WIDTH = 16, PAIR = 1;
  static Floats multiply_add(Floats sums, Row a, Row b) { return sums + a * b; }
  static Row weights(const float* p) { return splat(*p); }
  static void weave(const Row* rows, Row* out) { out[0] = rows[0]; }
  static void unweave(Floats*) {}
  static void store(float* x, Floats y) { write(x, y); }
};

template <>
struct Element<BFloat16> {
  using Row = Halves;
  static constexpr int WIDTH = 32, PAIR = 2;
  static Floats multiply_add(Floats sums, Row a, Row b) {
#ifdef __AVX512BF16__
    return (Floats)_mm512_dpbf16_ps((__m512)sums, (__m512bh)a, (__m512bh)b);
#else
    Words x = (Words)a, y = (Words)b;
    sums += (Floats)(x << 16) * (Floats)(y << 16);
    return sums + (Floats)(x & 0xffff0000u) * (Floats)(y & 0xffff0000u);
#endif
  }
  static Row weights(const BFloat16* p) {
    uint32_t both;
    std::memcpy(&both, p, 4);
    return (Row)(Words{} + both);
  }
  static void weave(const Row* rows, Row* out) {
    out[0] = SHUFFLE(Halves, rows[0], rows[1], 0, 32, 1, 33, 2, 34, 3, 35, 8, 40, 9, 41, 10, 42, 11, 43, 16, 48, 17, 49,
                     18, 50, 19, 51, 24, 56, 25, 57, 26, 58, 27, 59);
    out[1] = SHUFFLE(Halves, rows[0], rows[1], 4, 36, 5, 37, 6, 38, 7, 39, 12, 44, 13, 45, 14, 46, 15, 47, 20, 52, 21,
                     53, 22, 54, 23, 55, 28, 60, 29, 61, 30, 62, 31, 63);
  }
  static void unweave(Floats* sums) {
    Floats a = sums[0], b = sums[1];
    sums[0] = SHUFFLE(Ints, a, b, 0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    sums[1] = SHUFFLE(Ints, a, b, 8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
  }
  static void store(BFloat16* x, Floats y) {
#ifdef __AVX512BF16__
    write(x, _mm512_cvtneps_pbh((__m512)y));
#else
    Words bits = (Words)y;  // to the nearest, ties to even; NaN stays NaN
    Words rounded = y == y ? bits + 0x7fff + (bits >> 16 & 1) : bits | 0x400000u;
    for (int i = 0; i < LANES; i++) x[i].bits = uint16_t(rounded[i] >> 16);
#endif
  }
};

inline int round_up(int n, int step) { return (n + step - 1) / step * step; }

// ---- rows in memory ----------------------------------------------------------------------------------------------

// Rows of numbers, `stride` numbers apart; `ahead` bytes behind a row lies what is worth asking for.
template <class T>
struct Rows {
  const T* first;
  int64_t stride, ahead;
};

// What a thread computes in.
template <class T>
struct Scratch {
  struct alignas(64) Line {
    char bytes[64];
  };
  std::vector<T> query, weights;
  std::vector<float> logits;
  std::vector<Line> unpacked;
};

// A code of each of LANES bytes, of which only the first `count` are touched: bits SHIFT .. SHIFT + BITS - 1.
template <int BITS, int SHIFT>
inline Floats read_codes(const uint8_t* bytes, int count) {
  __m128i some = count >= LANES ? read<__m128i>(bytes) : _mm_maskz_loadu_epi8((1u << count) - 1, bytes);
  __m512i codes = _mm512_cvtepu8_epi32(some);
  if (SHIFT) codes = _mm512_srli_epi32(codes, SHIFT);
  if (BITS + SHIFT < 8) codes = _mm512_and_si512(codes, _mm512_set1_epi32((1 << BITS) - 1));
  return (Floats)_mm512_cvtepi32_ps(codes);
}

// A float16 in every lane.
inline Floats splat_half(const uint8_t* x) {
  return (Floats)_mm512_cvtph_ps(_mm256_set1_epi16(read<int16_t>(x)));
}

// How format.py packs rows of d columns: a code of 4 or 8 bits for each, then the scales and then the zero points, in
// float16, of groups of `size` neighbouring columns. Of 4 bits the first `half` columns are in a byte's low bits.
struct Format {
  int d, bits, groups, size, half, half_group;

  Format(int d, int bits, int groups)
      : d(d), bits(bits), groups(groups), size(d / groups), half((d + 1) / 2), half_group(half / size) {}

  // A row -> numbers [d], and up to LANES behind them that mean nothing.
  template <class T>
  void unpack(const uint8_t* row, T* numbers) const {
    if (bits == 8) {
      unpack_columns<T, 8, 0>(row, row + d, 0, d, 0, numbers);
    } else {
      unpack_columns<T, 4, 0>(row, row + half, 0, half, 0, numbers);
      unpack_columns<T, 4, 4>(row - half, row + half, half, d, half_group, numbers);
    }
  }

  // Columns from .. to - 1, the first of which is of group g. codes: byte c has column c; scales: the row's first one. A
  // function of its own: within its caller's loops GCC runs out of registers.
  template <class T, int BITS, int SHIFT>
  __attribute__((noinline)) void unpack_columns(const uint8_t* codes, const uint8_t* scales, int from, int to, int g,
                                                T* numbers) const {
    for (int c = from; c < to; g++) {
      Floats scale = splat_half(scales + 2 * g), zero = splat_half(scales + 2 * (groups + g));
      int end = std::min((g + 1) * size, to);
      for (; c < end; c += LANES)  // what is too much, the next group overwrites
        Element<T>::store(numbers + c, zero + scale * read_codes<BITS, SHIFT>(codes + c, to - c));
      c = end;
    }
  }
};

// Keys or values of an arena: rows `stride` bytes apart. bits 0: they are numbers. Otherwise they are packed.
struct Memory {
  const uint8_t* rows;
  int64_t stride, bits, groups;

  // Rows first .. first + count - 1, of d numbers each; at most TILE if they are packed.
  template <class T>
  Rows<T> load(int64_t first, int count, int d, Scratch<T>& scratch) const {
    const uint8_t* row = rows + first * stride;
    if (bits == 0) return {(const T*)row, stride / (int64_t)sizeof(T), AHEAD};
    int wide = round_up(d + LANES, Element<T>::WIDTH);  // the last store may reach behind the last column
    scratch.unpacked.resize(TILE * wide * sizeof(T) / 64);
    Format format(d, (int)bits, (int)groups);
    T* numbers = (T*)scratch.unpacked.data();
    for (int t = 0; t < count; t++, row += stride) {
      for (int64_t i = 0; i < stride; i += 64) expect(row + i, AHEAD);
      format.unpack(row, numbers + t * wide);
    }
    return {numbers, wide, 0};
  }
};

// The entries of all sequences, or those of them that are stored in one way. native.py writes it as ten int64.
struct Part {
  Memory keys, values;
  const int32_t *start, *length;
};

// ---- logits ------------------------------------------------------------------------------------------------------

// Of four vectors each one's sum, in the first four lanes.
inline Floats sum_lanes(Floats a, Floats b, Floats c, Floats d) {
  Floats ab = SHUFFLE(Ints, a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29) +
              SHUFFLE(Ints, a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
  Floats cd = SHUFFLE(Ints, c, d, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29) +
              SHUFFLE(Ints, c, d, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
  Floats all = SHUFFLE(Ints, ab, cd, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
               SHUFFLE(Ints, ab, cd, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
  all += SHUFFLE(Ints, all, all, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
  all += SHUFFLE(Ints, all, all, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
  return all;
}

// query [R, padded], zeros behind d; keys [count, d] -> logits [R, PIECE].
template <class T, int R>
void score(const T* query, int padded, Rows<T> keys, int count, int d, float scale, float* logits) {
  using E = Element<T>;
  using Row = typename E::Row;
  for (int t = 0; t < count; t += TOGETHER) {
    const T* key[TOGETHER];
    for (int j = 0; j < TOGETHER; j++) key[j] = keys.first + std::min(t + j, count - 1) * keys.stride;
    // one entry after the other, as they lie in memory; the products below go through several at a time
    for (int j = 0; j < TOGETHER; j++)
      for (int c = 0; c < d; c += E::WIDTH) expect(keys.first + (t + j) * keys.stride + c, keys.ahead);
    Floats sums[R][TOGETHER] = {};
    Row k[TOGETHER];
    auto add = [&](int c) {
      for (int r = 0; r < R; r++) {
        Row q = read<Row>(query + r * padded + c);
        for (int j = 0; j < TOGETHER; j++) sums[r][j] = E::multiply_add(sums[r][j], k[j], q);
      }
    };
    int c = 0;
    for (; c + E::WIDTH <= d; c += E::WIDTH) {
      for (int j = 0; j < TOGETHER; j++) k[j] = read<Row>(key[j] + c);
      add(c);
    }
    if (c < d) {
      for (int j = 0; j < TOGETHER; j++) k[j] = read_some<Row>(key[j] + c, d - c);
      add(c);
    }
    for (int r = 0; r < R; r++) {
      Floats four = sum_lanes(sums[r][0], sums[r][1], sums[r][2], sums[r][3]) * scale;
      std::memcpy(logits + r * PIECE + t, &four, TOGETHER * sizeof(float));
    }
  }
}

// ---- weights -----------------------------------------------------------------------------------------------------

// exp(x) of x <= 0, to 2 units of the last place (the polynomial is that of Cephes' expf); 0 below -87.
inline Floats exp_negative(Floats x) {
  const Floats magic = splat(12582912.f);  // 1.5 * 2^23: adding it rounds to an integer, found in the low bits
  Floats shifted = x * 1.44269504088896341f + magic;
  Floats n = shifted - magic;
  Floats r = x - n * 0.693359375f - n * -2.12194440e-4f;
  Floats y = splat(1.9875691500e-4f) * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * r * r + r + 1.f;
  Floats power = (Floats)((((Ints)shifted - (Ints)magic) + 127) << 23);
  y *= power;  // a product, so that NaN stays NaN
  return x < splat(-87.f) ? Floats{} : y;
}

// logits [count] -> weights exp(logit - largest), in place and as T. What is behind up to a whole vector becomes 0.
template <class T>
void weigh(float* logits, int count, float softcap, T* weights, float* largest, float* total) {
  if (softcap > 0)
    for (int t = 0; t < count; t++) logits[t] = softcap * std::tanh(logits[t] / softcap);
  int end = round_up(count, LANES);
  for (int t = count; t < end; t++) logits[t] = LOWEST;
  Floats high = splat(LOWEST);
  for (int t = 0; t < end; t += LANES) {
    Floats x = read<Floats>(logits + t);
    high = x > high ? x : high;
  }
  *largest = LOWEST;
  for (int i = 0; i < LANES; i++) *largest = std::max(*largest, high[i]);
  Floats sums{};
  for (int t = 0; t < end; t += LANES) {
    Floats p = exp_negative(read<Floats>(logits + t) - *largest);
    Element<T>::store(weights + t, p);
    sums += p;
  }
  *total = 0;
  for (int i = 0; i < LANES; i++) *total += sums[i];
}

// ---- weighted sums of values -------------------------------------------------------------------------------------

// Adds to sums [R, padded] what TILE entries or fewer give to N vectors of columns from column c on, or to `some` <
// WIDTH columns.
template <class T, int R, int N, bool SOME>
void add_columns(const T* weights, Rows<T> values, int c, int count, int some, float* sums, int padded) {
  using E = Element<T>;
  using Row = typename E::Row;
  constexpr int PAIR = E::PAIR;
  Floats part[R][N * PAIR];
  for (int r = 0; r < R; r++)
    for (int i = 0; i < N * PAIR; i++) part[r][i] = read<Floats>(sums + r * padded + c + i * LANES);
  for (int t = 0; t < count; t += PAIR) {
    Row p[R];
    for (int r = 0; r < R; r++) p[r] = E::weights(weights + r * PIECE + t);
    for (int i = 0; i < N; i++) {
      Row rows[PAIR], woven[PAIR];
      for (int j = 0; j < PAIR; j++) {
        const T* x = values.first + (t + j) * values.stride + c + i * E::WIDTH;
        if (t + j >= count)
          rows[j] = Row{};
        else if (SOME)
          rows[j] = read_some<Row>(x, some);
        else
          rows[j] = read<Row>(x);
        expect(x, values.ahead);
      }
      E::weave(rows, woven);
      for (int j = 0; j < PAIR; j++)
        for (int r = 0; r < R; r++) part[r][i * PAIR + j] = E::multiply_add(part[r][i * PAIR + j], woven[j], p[r]);
    }
  }
  for (int r = 0; r < R; r++)
    for (int i = 0; i < N * PAIR; i++) write(sums + r * padded + c + i * LANES, part[r][i]);
}

// weights [R, PIECE], values [count, dv], TILE or fewer: adds to sums [R, padded], their columns as Element::unweave
// takes them.
template <class T, int R>
void add_values(const T* weights, Rows<T> values, int count, int dv, float* sums, int padded) {
  constexpr int WIDTH = Element<T>::WIDTH, N = 64 / WIDTH;
  int c = 0;
  for (; c + 64 <= dv; c += 64) add_columns<T, R, N, false>(weights, values, c, count, 0, sums, padded);
  for (; c + WIDTH <= dv; c += WIDTH) add_columns<T, R, 1, false>(weights, values, c, count, 0, sums, padded);
  if (c < dv) add_columns<T, R, 1, true>(weights, values, c, count, dv - c, sums, padded);
}

// ---- all of it ---------------------------------------------------------------------------------------------------

// Calls f(g, R) for query heads g .. g + R - 1 until all of the group had their turn. The compiler knows R.
template <class F>
void for_heads(int group, F f) {
  int g = 0;
  for (; g + ROWS <= group; g += ROWS) f(g, std::integral_constant<int, ROWS>());
  if (group - g == 3) f(g, std::integral_constant<int, 3>());
  if (group - g == 2) f(g, std::integral_constant<int, 2>());
  if (group - g == 1) f(g, std::integral_constant<int, 1>());
}

template <class T>
struct Task {
  const T* query;
  T* out;
  const Part* parts;
  int many_parts;
  int64_t sequences;
  int group, d, dv;
  float scale, softcap;

  struct Piece {
    int64_t sequence;
    const Part* part;
    int64_t first;  // row of the part's memory
    int count;
  };

  int padded() const { return round_up(dv, Element<T>::WIDTH); }

  // Of one piece: sums [group, padded], largest [group] and total [group].
  void attend_piece(const Piece& piece, float* sums, float* largest, float* total) const {
    static thread_local Scratch<T> scratch;
    int wide = round_up(d, Element<T>::WIDTH);
    scratch.logits.resize(group * PIECE);
    scratch.weights.resize(group * PIECE);
    scratch.query.assign(group * wide, T{});
    T *q = scratch.query.data(), *weights = scratch.weights.data();
    float* logits = scratch.logits.data();
    for (int g = 0; g < group; g++) std::copy_n(query + (piece.sequence * group + g) * d, d, q + g * wide);
    std::fill_n(sums, group * padded(), 0.f);
    const int step = piece.part->keys.bits == 0 ? PIECE : TILE;
    for (int t = 0; t < piece.count; t += step) {
      int n = std::min(step, piece.count - t);
      Rows<T> keys = piece.part->keys.load(piece.first + t, n, d, scratch);
      for_heads(group, [&](int g, auto r) {
        score<T, r.value>(q + g * wide, wide, keys, n, d, scale, logits + g * PIECE + t);
      });
    }
    for (int g = 0; g < group; g++)
      weigh(logits + g * PIECE, piece.count, softcap, weights + g * PIECE, largest + g, total + g);
    for (int t = 0; t < piece.count; t += TILE) {
      int n = std::min(TILE, piece.count - t);
      Rows<T> values = piece.part->values.load(piece.first + t, n, dv, scratch);
      for_heads(group, [&](int g, auto r) {
        add_values<T, r.value>(weights + g * PIECE + t, values, n, dv, sums + g * padded(), padded());
      });
    }
  }

  // Put a sequence's pieces together, in order, and write its rows of out.
  void combine(int64_t i, int64_t pieces, const float* sums, const float* largest, const float* total) const {
    using E = Element<T>;
    int wide = padded();
    std::vector<float> share(pieces);
    for (int g = 0; g < group; g++) {
      float top = LOWEST, weight = 0;
      for (int64_t p = 0; p < pieces; p++) top = std::max(top, largest[p * group + g]);
      for (int64_t p = 0; p < pieces; p++) {
        share[p] = std::exp(largest[p * group + g] - top);
        weight += share[p] * total[p * group + g];
      }
      for (int c = 0; c < dv; c += E::WIDTH) {
        Floats mean[E::PAIR] = {};
        for (int64_t p = 0; p < pieces; p++)
          for (int j = 0; j < E::PAIR; j++)
            mean[j] += share[p] * read<Floats>(sums + (p * group + g) * wide + c + j * LANES);
        E::unweave(mean);
        T numbers[E::WIDTH];
        for (int j = 0; j < E::PAIR; j++) E::store(numbers + j * LANES, mean[j] / weight);
        std::copy_n(numbers, std::min(E::WIDTH, dv - c), out + (i * group + g) * dv + c);
      }
    }
  }

  void run(int threads) const {
    std::vector<Piece> pieces;
    std::vector<int64_t> begin(sequences + 1);
    for (int64_t i = 0; i < sequences; i++) {
      for (const Part* part = parts; part < parts + many_parts; part++)
        for (int64_t first = 0; first < part->length[i]; first += PIECE)
          pieces.push_back({i, part, part->start[i] + first, (int)std::min<int64_t>(PIECE, part->length[i] - first)});
      begin[i + 1] = pieces.size();
    }
    int64_t many = pieces.size(), wide = padded();
    if (many * PIECE * group * (d + dv) < ALONE) threads = 1;
    std::unique_ptr<float[]> sums(new float[many * group * wide]);
    std::vector<float> largest(many * group), total(many * group);
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
    for (int64_t p = 0; p < many; p++)
      attend_piece(pieces[p], &sums[p * group * wide], &largest[p * group], &total[p * group]);
    for (int64_t i = 0; i < sequences; i++)
      combine(i, begin[i + 1] - begin[i], &sums[begin[i] * group * wide], &largest[begin[i] * group],
              &total[begin[i] * group]);
  }
};

}  // namespace

// query [sequences, group, d], out [sequences, group, dv]. A sequence is what its parts hold, one behind the other;
// start, length [sequences] of each. softcap 0: none.
#define EXPORT(name, T)                                                                                               \
  extern "C" void name(const T* query, T* out, const Part* parts, int many_parts, int64_t sequences, int group, int d, \
                       int dv, float scale, float softcap, int threads) {                                             \
    Task<T>{query, out, parts, many_parts, sequences, group, d, dv, scale, softcap}.run(threads);                     \
  }
EXPORT(attend_float32, float)
EXPORT(attend_bfloat16, BFloat16)
