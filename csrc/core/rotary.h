// The cosine and sine of an angle, computed alike by the CPU and by kernels for devices: rotary positions have the same
// bits everywhere.
#pragma once

#include <math.h>

#include "core/both.h"

namespace kdtw {

struct Turn {
  float cosine, sine;
};

// Of an angle of less than 2^30, rounded from about 52 digits. Quarter turns are taken off with pi/2 in two parts (Cody
// and Waite 1980); what is left goes through the polynomials of fdlibm.
KDTW_BOTH Turn turn_by(float angle) {
  const double quarters = rint(static_cast<double>(angle) * 0.63661977236758138);
  const double rest =
      fma(quarters, -6.123233995736766e-17, fma(quarters, -1.5707963267948966, static_cast<double>(angle)));
  const double z = rest * rest;
  const double s = rest + rest * z *
                              (-1.66666666666666324348e-01 +
                               z * (8.33333333332248946124e-03 +
                                    z * (-1.98412698298579493134e-04 +
                                         z * (2.75573137070700676789e-06 +
                                              z * (-2.50507602534068634195e-08 + z * 1.58969099521155010221e-10)))));
  const double c = 1.0 - 0.5 * z +
                   z * z *
                       (4.16666666666666019037e-02 +
                        z * (-1.38888888888741095749e-03 +
                             z * (2.48015872894767294178e-05 +
                                  z * (-2.75573143513906633035e-07 +
                                       z * (2.08757232129817482790e-09 + z * -1.13596475577881948265e-11)))));
  const int quarter = static_cast<int>(quarters) & 3;
  const double across = quarter % 2 == 0 ? c : s, up = quarter % 2 == 0 ? s : c;
  return {static_cast<float>(quarter == 1 || quarter == 2 ? -across : across),
          static_cast<float>(quarter >= 2 ? -up : up)};
}

}  // namespace kdtw
