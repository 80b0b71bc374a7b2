# Installs the library for C and C++. Needs Rust and make; `cargo cinstall` of cargo-c installs the
# same files.
#
#   make                               builds the libraries
#   make install PREFIX=/usr/local     installs libraries, headers, tensorswap.pc and the CMake package
#   make uninstall PREFIX=/usr/local   removes them
#
# DESTDIR is put before every path (for packages); LIBDIR and INCLUDEDIR are under PREFIX by default.
# `make` as yourself, then `sudo make install`: nothing is built again.

PREFIX     ?= /usr/local
LIBDIR     ?= $(PREFIX)/lib
INCLUDEDIR ?= $(PREFIX)/include
CMAKEDIR    = $(PREFIX)/share/cmake/tensorswap
DESTDIR    ?=

CARGO   ?= cargo
INSTALL ?= install
PROFILE ?= release
# A target directory of its own: the library of `cargo build` has no SONAME, because it is used from
# where it lies.
BUILD   ?= $(abspath $(or $(CARGO_TARGET_DIR),target)/install)
OUT      = $(BUILD)/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))

field   = $(shell sed -n 's/^$(1) = "\(.*\)"$$/\1/p' Cargo.toml | head -n 1)
VERSION := $(call field,version)
# While the first number is 0 the second one counts for the binary interface too.
NUMBERS := $(subst ., ,$(VERSION))
SONAME  := libtensorswap.so.$(word 1,$(NUMBERS))$(if $(filter 0,$(word 1,$(NUMBERS))),.$(word 2,$(NUMBERS)))

.PHONY: all install uninstall

all: $(OUT)/libtensorswap.so

# One run makes the shared and the static library.
$(OUT)/libtensorswap.so: Cargo.toml Cargo.lock $(shell find src -name '*.rs')
	$(CARGO) rustc -p tensorswap --lib --locked --profile $(PROFILE) --target-dir $(BUILD) -- \
		-C link-arg=-Wl,-soname,$(SONAME)
	@touch $@

define PC
s|@PREFIX@|$(PREFIX)|; \
s|@LIBDIR@|$(patsubst $(PREFIX)/%,$${prefix}/%,$(LIBDIR))|; \
s|@INCLUDEDIR@|$(patsubst $(PREFIX)/%,$${prefix}/%,$(INCLUDEDIR))|; \
s|@DESCRIPTION@|$(call field,description)|; \
s|@VERSION@|$(VERSION)|
endef

install: all
	$(if $(filter /%,$(PREFIX)),,$(error PREFIX is to be an absolute path, not "$(PREFIX)"))
	$(INSTALL) -d '$(DESTDIR)$(LIBDIR)/pkgconfig' '$(DESTDIR)$(INCLUDEDIR)' '$(DESTDIR)$(CMAKEDIR)'
	$(INSTALL) -m 755 $(OUT)/libtensorswap.so '$(DESTDIR)$(LIBDIR)/libtensorswap.so.$(VERSION)'
	ln -sf libtensorswap.so.$(VERSION) '$(DESTDIR)$(LIBDIR)/$(SONAME)'
	ln -sf libtensorswap.so.$(VERSION) '$(DESTDIR)$(LIBDIR)/libtensorswap.so'
	$(INSTALL) -m 644 $(OUT)/libtensorswap.a '$(DESTDIR)$(LIBDIR)'
	$(INSTALL) -m 644 include/tensorswap.h include/tensorswap.hpp '$(DESTDIR)$(INCLUDEDIR)'
	$(INSTALL) -m 644 packaging/*.cmake '$(DESTDIR)$(CMAKEDIR)'
	sed '$(PC)' packaging/tensorswap.pc.in > '$(DESTDIR)$(LIBDIR)/pkgconfig/tensorswap.pc'

uninstall:
	rm -f '$(DESTDIR)$(LIBDIR)/libtensorswap.so.$(VERSION)' '$(DESTDIR)$(LIBDIR)/$(SONAME)' \
		'$(DESTDIR)$(LIBDIR)/libtensorswap.so' '$(DESTDIR)$(LIBDIR)/libtensorswap.a' \
		'$(DESTDIR)$(LIBDIR)/pkgconfig/tensorswap.pc' \
		'$(DESTDIR)$(INCLUDEDIR)/tensorswap.h' '$(DESTDIR)$(INCLUDEDIR)/tensorswap.hpp'
	rm -rf '$(DESTDIR)$(CMAKEDIR)'
