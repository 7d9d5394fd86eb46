#!/bin/sh
# musl-python.sh PROCESSOR ROOT: builds CPython for musl, which Debian has not, into ROOT/opt/musl-python, with Debian's gcc,
# musl and sources. For scripts/run_wheels.py: where Alpine's packages are to be had, its own Python is the better one.
# Needs apt-get, make, perl, python3.11 and gcc-aarch64-linux-gnu or gcc-x86-64-linux-gnu.
set -eu
processor=$1
root=$(realpath "$2")
release=bookworm
# Where debootstrap had the root's packages from.
mirror=$(sed -n '1s#^[^ ]* [^ ]* \(.*\)/pool/.*#\1#p' "$root/debootstrap/deburis")
case $processor in
x86_64) architecture=amd64 flags= ;;
# libgcc's outlined atomics ask glibc.
aarch64) architecture=arm64 flags=-mno-outline-atomics ;;
*) echo "musl-python: no such processor: $processor" >&2; exit 2 ;;
esac
gcc=$processor-linux-gnu-gcc
for program in apt-get dpkg-deb make perl python3.11 "$gcc"; do
    command -v "$program" >/dev/null || { echo "musl-python: $program is missing" >&2; exit 2; }
done

work=$root.musl
rm -rf "$work"
mkdir -p "$work/lists/partial" "$work/musl" "$work/downloads" "$work/python" "$work/openssl" "$work/zlib"
log=$work/log
trap 'code=$?; [ $code = 0 ] || { tail -n 40 "$log"; echo "musl-python: failed; all of it is in $log" >&2; }; exit $code' EXIT
exec 3>&1 >"$log" 2>&1

for kind in deb deb-src; do
    echo "$kind [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $release main"
done >"$work/sources.list"
cd "$work/downloads"
apt() {
    apt-get -q -o Dir::Etc::SourceList="$work/sources.list" -o Dir::Etc::SourceParts=/dev/null -o Dir::State::Lists="$work/lists" \
        -o Dir::State::status=/dev/null -o APT::Sandbox::User=root -o APT::Architecture=$architecture -o APT::Architectures::=$architecture "$@"
}
apt update
apt download musl musl-dev linux-libc-dev
apt source --download-only --only-source python3.11 openssl zlib
for package in *.deb; do dpkg-deb -x "$package" "$work/musl"; done
rm -f ./*.asc
for name in python openssl zlib; do tar -xf $name*.orig.tar.* -C "$work/$name" --strip-components=1; done

# gcc with musl's headers and libraries instead of glibc's, as musl-gcc does it, and the kernel's headers after them.
library=$work/musl/usr/lib/$processor-linux-musl
# Without it everything would be linked statically, and could load no extension.
cp "$work/musl/lib/$processor-linux-musl/libc.so" "$library"
sed "s#/usr/\(lib\|include\)/$processor-linux-musl#$work/musl/usr/\1/$processor-linux-musl#g" "$library/musl-gcc.specs" >"$work/specs"
mkdir "$work/bin" "$work/kernel"
cp -r "$work/musl/usr/include/linux" "$work/musl/usr/include/asm-generic" "$work/musl/usr/include/$processor-linux-gnu/asm" "$work/kernel"
cat >"$work/bin/cc" <<END
#!/bin/sh
# CPython's configure asks, and its setup.py.
case "\$*" in *-print-multiarch) echo $processor-linux-musl; exit 0 ;; esac
exec $gcc "\$@" -specs "$work/specs" -idirafter "$work/kernel" $flags -w
END
chmod +x "$work/bin/cc"
export CC="$work/bin/cc" AR="$processor-linux-gnu-ar" RANLIB="$processor-linux-gnu-ranlib" READELF="$processor-linux-gnu-readelf"
jobs=$(nproc)

cd "$work/openssl"
./Configure linux-$processor no-shared no-tests no-async no-secure-memory no-dso no-engine no-legacy -O1 --prefix="$work/installed" --libdir=lib
make -j"$jobs" build_libs
make install_dev
cd "$work/zlib"
CFLAGS="-O2 -fPIC" CHOST=$processor-linux-musl ./configure --static --prefix="$work/installed"
make libz.a
cp libz.a "$work/installed/lib"
cp zlib.h zconf.h "$work/installed/include"

# A cross build, also for this machine's processor: what is built is not run, and nothing of this system is looked for.
cd "$work/python"
./configure --host=$processor-linux-musl --build="$(uname -m)-build-linux-musl" --with-build-python="$(command -v python3.11)" --prefix=/opt/musl-python \
    --with-openssl="$work/installed" --disable-test-modules --without-ensurepip \
    ac_cv_file__dev_ptmx=yes ac_cv_file__dev_ptc=no ac_cv_buggy_getaddrinfo=no CPPFLAGS="-I$work/installed/include" LDFLAGS="-L$work/installed/lib" OPT="-DNDEBUG -O1"
make -j"$jobs"
"$processor-linux-gnu-readelf" -l python | grep -q ld-musl
make install DESTDIR="$root"
rm -rf "$root/opt/musl-python/lib/python3.11/test" "$root/opt/musl-python/lib/python3.11/config-"*
test -e "$root"/opt/musl-python/lib/python3.11/lib-dynload/_ssl.*.so
cd /
rm -rf "$work"
echo "musl-python: built for $processor" >&3
