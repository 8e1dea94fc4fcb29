# make install DESTDIR=... PROFILE=release
#
# Puts what the build made, and the files next to this one, where a host expects
# them. Builds nothing; man pages and completions come from the built drover itself. Included by the top Makefile; paths are from there.

DESTDIR ?=
PROFILE ?= release
INSTALL ?= install
CARGO_TARGET_DIR ?= target
GUEST_TARGET ?= x86_64-unknown-linux-gnu

# Cargo calls the directory of its "dev" profile "debug".
profile_dir := $(if $(filter dev,$(PROFILE)),debug,$(PROFILE))
bin_dir := $(CARGO_TARGET_DIR)/$(profile_dir)
guest_bin := $(CARGO_TARGET_DIR)/$(GUEST_TARGET)/$(profile_dir)/drover-guest

.PHONY: install
install:
	$(INSTALL) -D -m 755 $(bin_dir)/droverd $(DESTDIR)/usr/sbin/droverd
	$(INSTALL) -D -m 755 $(bin_dir)/drover $(DESTDIR)/usr/bin/drover
	$(INSTALL) -D -m 755 $(guest_bin) $(DESTDIR)/usr/lib/drover/drover-guest
	$(INSTALL) -D -m 755 $(bin_dir)/drover-hook $(DESTDIR)/usr/lib/drover/drover-hook
# A copy, not a link: libvirt's AppArmor profile lets a hook run from its own
# directory but not from /usr/lib/drover.
	$(INSTALL) -D -m 755 $(bin_dir)/drover-hook $(DESTDIR)/etc/libvirt/hooks/qemu.d/50-drover
	$(INSTALL) -D -m 644 packaging/droverd.service $(DESTDIR)/usr/lib/systemd/system/droverd.service
	$(INSTALL) -D -m 644 packaging/org.drover1.conf $(DESTDIR)/usr/share/dbus-1/system.d/org.drover1.conf
	$(INSTALL) -d -m 755 $(DESTDIR)/etc/drover/features.d
	$(INSTALL) -D -m 644 packaging/polkit/org.drover1.policy $(DESTDIR)/usr/share/polkit-1/actions/org.drover1.policy
	$(INSTALL) -D -m 644 packaging/dbus/org.drover1.xml $(DESTDIR)/usr/share/dbus-1/interfaces/org.drover1.xml
	$(bin_dir)/drover generate man $(bin_dir)/man
	$(bin_dir)/drover generate completions $(bin_dir)/completions
	$(INSTALL) -d $(DESTDIR)/usr/share/man/man1 $(DESTDIR)/usr/share/man/man5 $(DESTDIR)/usr/share/man/man7 $(DESTDIR)/usr/share/man/man8
	$(INSTALL) -m 644 $(bin_dir)/man/man1/*.1 $(DESTDIR)/usr/share/man/man1
	$(INSTALL) -m 644 packaging/man/*.5 $(DESTDIR)/usr/share/man/man5
	$(INSTALL) -m 644 packaging/man/*.7 $(DESTDIR)/usr/share/man/man7
	$(INSTALL) -m 644 $(bin_dir)/man/man8/*.8 $(DESTDIR)/usr/share/man/man8
	$(INSTALL) -D -m 644 $(bin_dir)/completions/bash/drover $(DESTDIR)/usr/share/bash-completion/completions/drover
	$(INSTALL) -D -m 644 $(bin_dir)/completions/zsh/_drover $(DESTDIR)/usr/share/zsh/vendor-completions/_drover
	$(INSTALL) -D -m 644 $(bin_dir)/completions/fish/drover.fish $(DESTDIR)/usr/share/fish/vendor_completions.d/drover.fish
	$(INSTALL) -D -m 644 packaging/grafana/drover.json $(DESTDIR)/usr/share/drover/grafana/drover.json
	$(INSTALL) -D -m 644 packaging/drover.tmpfiles $(DESTDIR)/usr/lib/tmpfiles.d/drover.conf
	$(INSTALL) -D -m 644 packaging/drover.sysusers $(DESTDIR)/usr/lib/sysusers.d/drover.conf
