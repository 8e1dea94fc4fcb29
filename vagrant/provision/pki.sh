#!/bin/bash
# A test certificate authority and the certificates of libvirt's layout.
#
#   pki.sh ca DIR              DIR/cacert.pem and DIR/cakey.pem
#   pki.sh host DIR NAME IP    DIR/NAME/: cacert, servercert, clientcert (.pem)
#                              and serverkey, clientkey (.pem)
#   pki.sh install DIR/NAME    into /etc/pki, where libvirt looks for them
#
# The leaves are version 3, carry the name and the address as subject
# alternative names and one extended key usage each: webpki (rustls) insists.
set -euo pipefail
umask 077

key() { openssl genpkey -quiet -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1" 2>/dev/null ||
    openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1" 2>/dev/null; }

leaf() { # DIR NAME IP KIND
    local dir=$1 name=$2 ip=$3 kind=$4 out=$1/$2
    key "$out/${kind}key.pem"
    openssl req -new -key "$out/${kind}key.pem" -subj "/O=Drover test/CN=$name" -out "$out/$kind.csr"
    openssl x509 -req -in "$out/$kind.csr" -CA "$dir/cacert.pem" -CAkey "$dir/cakey.pem" \
        -set_serial "0x$(openssl rand -hex 8 | sed 's/^./4/')" -days 3650 -sha256 \
        -out "$out/${kind}cert.pem" -extfile <(cat <<X
basicConstraints=critical,CA:FALSE
keyUsage=critical,digitalSignature,keyEncipherment
extendedKeyUsage=${kind}Auth
subjectAltName=DNS:$name,IP:$ip
subjectKeyIdentifier=hash
authorityKeyIdentifier=keyid
X
) 2>/dev/null
    rm "$out/$kind.csr"
}

case ${1:-} in
ca)
    mkdir -p "$2"
    key "$2/cakey.pem"
    openssl req -x509 -new -key "$2/cakey.pem" -sha256 -days 3650 -subj "/CN=Drover test CA" \
        -addext basicConstraints=critical,CA:TRUE \
        -addext keyUsage=critical,keyCertSign,cRLSign -out "$2/cacert.pem"
    ;;
host)
    mkdir -p "$2/$3"
    leaf "$2" "$3" "$4" server
    leaf "$2" "$3" "$4" client
    cp "$2/cacert.pem" "$2/$3/"
    ;;
install)
    install -d -m 755 /etc/pki /etc/pki/CA /etc/pki/libvirt
    install -d -m 700 /etc/pki/libvirt/private
    install -m 644 "$2/cacert.pem" /etc/pki/CA/cacert.pem
    for kind in server client; do
        install -m 644 "$2/${kind}cert.pem" /etc/pki/libvirt/
        install -m 600 "$2/${kind}key.pem" /etc/pki/libvirt/private/
    done
    ;;
*)
    sed -n '2,10s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
