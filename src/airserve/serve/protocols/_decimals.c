/* Lists of JSON numbers (RFC 8259) straight into an array: what a JSON infer request spends its time on.
 *
 * Every number is rounded once, to nearest, ties to even, as `float` does. Up to 19 digits are read as an integer w,
 * and w * 10^q = w * 5^q * 2^q is rounded from an exact product or from a quotient and whether it leaves a remainder;
 * the division by 5^-q multiplies by its reciprocal (Moeller and Granlund, "Improved division by invariant integers",
 * IEEE Trans. Computers 60, 2011, algorithm 4). What lies beyond is left to CPython's own reader. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#if PY_LITTLE_ENDIAN != 1
#error "digits are read eight at a time, lowest byte first"
#endif

typedef unsigned __int128 u128;

enum { DIGITS = 19, FIVES = 27, TENS = 22 }; /* 10^19 < 2^64, 5^27 < 2^63, 10^22 is a double */

static uint64_t ten_to[8], five_to[FIVES + 1];
static double power_of_ten[TENS + 1];
static struct { uint64_t divisor, inverse; int shift; } by_five[FIVES + 1]; /* 5^n shifted until its top bit is set */

static void fill(void) {
    ten_to[0] = five_to[0] = 1;
    for (int n = 1; n < 8; n++) ten_to[n] = 10 * ten_to[n - 1];
    power_of_ten[0] = 1;
    for (int n = 1; n <= TENS; n++) power_of_ten[n] = 10 * power_of_ten[n - 1];
    for (int n = 1; n <= FIVES; n++) {
        five_to[n] = 5 * five_to[n - 1];
        by_five[n].shift = __builtin_clzll(five_to[n]);
        by_five[n].divisor = five_to[n] << by_five[n].shift;
        by_five[n].inverse = (uint64_t)(~(u128)0 / by_five[n].divisor); /* less 2^64, which the cast takes */
    }
}

/* The double nearest to (m + something less than 1, where `more`) * 2^e, for m >= 2^62: no subnormals here. */
static inline double rounded(uint64_t m, bool more, int e) {
    int64_t odd = (int64_t)(m >> 1 | (m & 1) | more); /* what lies below the 53 bits that stay only breaks ties */
    return (double)odd * ((union { uint64_t bits; double value; }){.bits = (uint64_t)(1024 + e) << 52}).value;
}

/* w * 10^q for -FIVES <= q <= FIVES. */
static double scaled(uint64_t w, int q) {
    if (!w) return 0.0;
    int up = __builtin_clzll(w);
    w <<= up;
    if (q >= 0) {
        u128 product = (u128)w * five_to[q];
        uint64_t high = (uint64_t)(product >> 64);
        if (!high) return rounded((uint64_t)product, false, q - up);
        int lead = __builtin_clzll(high);
        if (lead) product <<= lead;
        return rounded((uint64_t)(product >> 64), (uint64_t)product != 0, 64 - lead + q - up);
    }
    uint64_t d = by_five[-q].divisor, high = w >> 1, low = w << 63; /* half of w: the quotient has 63 bits or 64 */
    u128 estimate = (u128)by_five[-q].inverse * high + (((u128)high << 64) | low);
    uint64_t quotient = (uint64_t)(estimate >> 64) + 1, rest = low - quotient * d;
    bool below = rest > (uint64_t)estimate; /* as likely as not: no branch */
    quotient -= below;
    rest += below ? d : 0;
    bool above = rest >= d;
    quotient += above;
    rest -= above ? d : 0;
    return rounded(quotient, rest != 0, by_five[-q].shift - 63 + q - up);
}

/* `(float)scaled(w, q)`, mostly without it: two roundings leave a double that is off by less than two of its last bits,
 * which only matters where it lies that close to the middle between two floats (29 bits are dropped). */
static inline float scaled_float(uint64_t w, int q) {
    if (w <= INT64_MAX && -TENS <= q && q <= TENS) {
        union { double value; uint64_t bits; } near = {(double)(int64_t)w};
        near.value = q < 0 ? near.value / power_of_ten[-q] : near.value * power_of_ten[q];
        if (((near.bits - 0x0FFFFFFC) & 0x1FFFFFFF) > 8) return (float)near.value;
    }
    return (float)scaled(w, q);
}

/* Eight bytes at p, zeros after the end. */
static inline uint64_t eight(const char *p, const char *end) {
    uint64_t word = 0;
    if (end - p >= 8) memcpy(&word, p, 8); /* a load, where the size is known */
    else if (p < end) memcpy(&word, p, (size_t)(end - p));
    return word;
}

/* The number that eight digits say, each as its value, the first in the lowest byte. */
static inline uint64_t eight_digits(uint64_t plain) {
    plain = plain * 10 + (plain >> 8); /* pairs, in every second byte */
    return (uint32_t)(((plain & 0x000000FF000000FFu) * 0x000F424000000064u
                       + ((plain >> 16) & 0x000000FF000000FFu) * 0x0000271000000001u) >> 32);
}

/* Reads digits on to w, modulo 2^64, and gives where they end. */
static inline const char *digits(const char *p, const char *end, uint64_t *w) {
    for (;; p += 8) {
        uint64_t plain = eight(p, end) ^ 0x3030303030303030u;
        /* The top bit of a byte says that it is no digit. What is carried out of a byte comes from one that is none. */
        uint64_t other = ((plain + 0x7676767676767676u) | plain) & 0x8080808080808080u;
        if (other) {
            int n = __builtin_ctzll(other) >> 3;
            *w = *w * ten_to[n] + eight_digits(plain << 8 << (56 - 8 * n)); /* zeros before them */
            return p + n;
        }
        *w = *w * 100000000 + eight_digits(plain);
    }
}

/* Every text ends with a zero, which is neither blank nor part of a number. */
static inline const char *blank(const char *p) {
    while ((unsigned char)*p <= ' ' && (*p == ' ' || *p == '\n' || *p == '\r' || *p == '\t')) p++;
    return p;
}

/* w * 10^q, unless it is `long_`; w alone where it is a `whole` number, without point or exponent, below 2^64. */
typedef struct { uint64_t w; bool minus, whole, long_; int q; } Number;

/* One JSON number, of which `scaled` can make a double unless it is `long_`; NULL where there is none. */
static inline const char *number(const char *p, const char *end, Number *of) {
    uint64_t w = 0;
    of->minus = *p == '-';
    p += of->minus;
    const char *first = p, *after;
    if ((unsigned char)(*p - '0') < 10 && p[1] == '.') { w = (unsigned char)(*p - '0'); after = p + 1; }
    else after = digits(p, end, &w);
    if (after == p || (*p == '0' && after > p + 1)) return NULL;
    Py_ssize_t count = after - p;
    int64_t q = 0;
    /* Of twenty digits that begin with a 1, w lost 2^64 if it is below 10^19: 2 * 10^19 - 2^64 is less. */
    of->whole = count <= DIGITS || (count == DIGITS + 1 && *p == '1' && w >= 10000000000000000000u);
    p = after;
    if (*p == '.') {
        after = digits(++p, end, &w);
        if (after == p) return NULL;
        q = p - after;
        count = after - first - 1;
        if (count > DIGITS) { /* zeros at the front are none */
            const char *from = first;
            while (from < after && (*from == '0' || *from == '.')) from++;
            count = from < p ? after - from - 1 : after - from;
        }
        of->whole = false;
        p = after;
    }
    if ((*p | 0x20) == 'e') {
        bool down = *++p == '-';
        p += *p == '-' || *p == '+';
        uint64_t power = 0;
        after = digits(p, end, &power);
        if (after == p) return NULL;
        if (after - p > 8) power = 100000000;
        q += down ? -(int64_t)power : (int64_t)power;
        of->whole = false;
        p = after;
    }
    of->w = w;
    of->minus &= w || !of->whole; /* a whole number has one zero */
    of->long_ = count > DIGITS || q < -FIVES || q > FIVES;
    of->q = of->long_ ? 0 : (int)q;
    return p;
}

/* A number as the `type` of the array, at its place `at`; `from` and `after` are where it stands. */
static inline bool put(const Number *of, const char *from, const char *after, char type, void *into, Py_ssize_t at) {
    if (type == 'q' || type == 'Q') {
        uint64_t most = type == 'Q' ? (of->minus ? 0 : UINT64_MAX) : (uint64_t)INT64_MAX + of->minus;
        if (!of->whole || of->w > most) return false;
        ((uint64_t *)into)[at] = of->minus ? -of->w : of->w;
        return true;
    }
    if (of->long_) {
        char *seen;
        double value = PyOS_string_to_double(from, &seen, NULL);
        if (seen != after || isinf(value)) { PyErr_Clear(); return false; }
        if (type == 'f') ((float *)into)[at] = (float)value; else ((double *)into)[at] = value;
    } else if (type == 'f') {
        float value = scaled_float(of->w, of->q);
        ((float *)into)[at] = of->minus ? -value : value;
    } else {
        double value = scaled(of->w, of->q);
        ((double *)into)[at] = of->minus ? -value : value;
    }
    return true;
}

/* Whether p to end is a list of as many numbers as fill `into` from `at` until `until`, and nothing else. */
static bool read_list(const char *p, const char *end, char type, void *into, Py_ssize_t at, Py_ssize_t until) {
    p = blank(p);
    if (*p++ != '[') return false;
    p = blank(p);
    while (at < until) {
        Number of;
        const char *from = p;
        if (!(p = number(p, end, &of)) || !put(&of, from, p, type, into, at)) return false;
        at++;
        p = blank(p);
        if (*p != (at < until ? ',' : ']')) return false;
        if (at < until) p = blank(p + 1);
    }
    return *p == ']' && blank(p + 1) == end;
}

PyDoc_STRVAR(read_lists_doc,
"read(texts, into, /)\n--\n\n"
"Whether every text is a JSON list of numbers and nothing else, all of the same length, and together they fill `into`.\n\n"
"`into` is a writable buffer of native 'f', 'd', 'q' or 'Q', contiguous; for the last two no number may have a point or an\n"
"exponent. Doubles are rounded once more for 'f'. Where it says False, `into` may have been written to.");

static PyObject *read_lists(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t given) {
    if (given != 2) return PyErr_Format(PyExc_TypeError, "read takes texts and a buffer");
    PyObject *texts = PySequence_Fast(args[0], "texts is no sequence"), *found = NULL;
    Py_buffer into;
    if (!texts) return NULL;
    if (PyObject_GetBuffer(args[1], &into, PyBUF_CONTIG | PyBUF_FORMAT) < 0) { Py_DECREF(texts); return NULL; }
    char type = into.format && !into.format[1] ? *into.format : 0;
    if (type == 'l' && sizeof(long) == 8) type = 'q';
    if (type == 'L' && sizeof(long) == 8) type = 'Q';
    if (!strchr("fdqQ", type) || !type) { PyErr_SetString(PyExc_TypeError, "into is of a type that is not read"); goto done; }
    Py_ssize_t count = PySequence_Fast_GET_SIZE(texts), all = into.len / into.itemsize, each = count ? all / count : 0;
    bool fit = count && all == each * count;
    for (Py_ssize_t k = 0; fit && k < count; k++) {
        char *p; Py_ssize_t size;
        if (PyBytes_AsStringAndSize(PySequence_Fast_GET_ITEM(texts, k), &p, &size) < 0) goto done;
        fit = read_list(p, p + size, type, into.buf, k * each, (k + 1) * each);
    }
    found = fit ? Py_True : Py_False;
done:
    PyBuffer_Release(&into);
    Py_DECREF(texts);
    return Py_XNewRef(found);
}

static PyMethodDef methods[] = {{"read", (PyCFunction)(void (*)(void))read_lists, METH_FASTCALL, read_lists_doc}, {0}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_decimals", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__decimals(void) {
    fill();
    return PyModule_Create(&module);
}
