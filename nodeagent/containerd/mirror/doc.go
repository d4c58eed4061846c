// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package mirror asks the mirrors of a registry for content, and never the registry.
//
// The mirrors are the [host] entries of the hosts.toml that containerd itself reads. Whatever leads
// to the registry is left out: the "server" line, the implicit https://<registry>, an entry that
// names either of them, all of these under the other names of docker.io, and hosts that the
// configuration calls upstream. No redirect is followed to another host.
//
// The package is made for Spegel, whose misses are often wrong and repeat for some seconds.
// Therefore a Client asks for content by GET and never by HEAD, with one request at a time for a key,
// and pauses after a miss (Throttle). The caller decides what a miss means for a pull.
package mirror
